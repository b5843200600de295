"""What a run refuses to begin with, and what it refuses to continue."""

import dataclasses
import json
import re
import types

from adavit_jax import data
from adavit_jax.runs import checks
from adavit_jax.runs import history
from adavit_jax.runs import same_hosts
from adavit_jax.runs import saved_run
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
import tiny


def _info(config, **fields):
  """What a checkpoint says of itself, of a run that began from no other."""
  return {**dict(config=json.loads(json.dumps(config.to_dict())),
                 began_from='', had_price=False, policy_learned=False),
          **fields}


def test_a_batch_larger_than_the_training_split_is_refused():
  config, dataset = tiny.get_config(), tiny.dataset()
  config.joint.batch_size = len(dataset.train)
  checks.sizes(config, dataset)
  config.joint.batch_size += 1
  with pytest.raises(ValueError, match='^joint.batch_size=41 .*40'):
    checks.sizes(config, dataset)


def test_gray_images_have_no_colors_to_change():
  config, dataset = tiny.get_config(), tiny.dataset()
  config.data.color_jitter = 0.4
  config.phases = ('policy',)  # distorts no images
  checks.sizes(config, dataset)
  config.phases = ('policy', 'dense')
  with pytest.raises(ValueError, match='color_jitter=0.4'):
    checks.sizes(config, dataset)


def test_a_warm_start_needs_two_held_out_images():
  config, dataset = tiny.get_config(), tiny.dataset()
  config.num_search = 2
  checks.sizes(config, dataset)
  config.num_search = 1
  with pytest.raises(ValueError, match='--config.data.holdout=.*'
                     '--config.num_search='):
    checks.sizes(config, dataset)
  config.num_search = 2
  none = dataclasses.replace(
      dataset, holdout=data.ArraySplit(
          np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int)))
  with pytest.raises(ValueError, match='--config.data.holdout='):
    checks.sizes(config, none)
  config.phases = ('dense',)
  checks.sizes(config, none)


def test_a_budget_below_what_always_runs_is_refused():
  config = tiny.get_config()
  system = system_lib.create(config, tiny.dataset())
  cost = system.cost
  floor = (cost.always + cost.policy) / cost.dense
  assert 0 < floor < 1
  config.mac_target = floor + 1e-3
  checks.budget(config, system)
  config.mac_target = floor - 1e-3
  with pytest.raises(ValueError, match=f'^mac_target=.*{floor:.3f}'):
    checks.budget(config, system)
  config.phases = ('dense', 'static')
  checks.budget(config, system)


def test_labels_must_mean_what_they_meant():
  dataset = tiny.dataset()  # its classes: 0, 1, 2, 3
  info = dict(dataset=dict(class_names=['0', '1', '2', '3']))
  checks.same_classes(info, dataset, 'DIR')
  info['dataset']['class_names'] = ['0', '2', '1', '3']
  with pytest.raises(ValueError, match="'1'.*'2'.*DIR"):
    checks.same_classes(info, dataset, 'DIR')


def test_images_must_be_those_that_were_trained_on():
  dataset = tiny.dataset()
  about = dict(num_classes=4, split=data.fingerprint(dataset))
  info = dict(dataset=about)
  checks.same_images(info, dataset, 'DIR')
  swapped = dataclasses.replace(
      dataset, train=dataset.holdout, holdout=dataset.train)
  with pytest.raises(ValueError, match='DIR'):
    checks.same_images(info, swapped, 'DIR')
  named = dataclasses.replace(dataset, files='a')
  checks.same_images(info, named, 'DIR')  # an earlier version noted none
  about['files'] = 'a'
  checks.same_images(info, named, 'DIR')
  with pytest.raises(ValueError, match='DIR'):
    checks.same_images(info, dataclasses.replace(dataset, files='b'), 'DIR')


def test_processes_of_a_job_must_read_the_same(monkeypatch):
  dataset, others = tiny.dataset(), []
  saved = types.SimpleNamespace(kind='phase', step=3)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(same_hosts.multihost_utils, 'process_allgather',
                      lambda x: np.stack([others.append(x) or x, others[0]]))
  config = tiny.get_config()
  same_hosts.check(config, dataset, saved)  # that of the other one
  config.data.data_dir = 'elsewhere'
  same_hosts.check(config, dataset, saved)
  for name, given in {
      'images': (config, dataclasses.replace(dataset, files='a'), saved),
      'mean': (config, dataclasses.replace(dataset, mean=(0.1,)), saved),
      'checkpoint': (config, dataset, None)}.items():
    with pytest.raises(ValueError, match=f'^process 1 .*{name}'):
      same_hosts.check(*given)
  config.seed = 5
  with pytest.raises(ValueError, match='^process 1 .*config'):
    same_hosts.check(config, dataset, saved)


def test_a_run_holds_out_what_the_run_before_it_held_out():
  source, config = tiny.get_config(), tiny.get_config()
  config.init.workdir = 'DIR'
  check = lambda info: checks.same_holdout(info, config, tiny.dataset())
  info = _info(source, dataset={})
  check(info)
  config.seed = 3
  with pytest.raises(ValueError, match='--config.data.seed=0 '
                     '--config.data.holdout=0.1'):
    check(info)
  config.data.seed = 0
  check(info)
  config.data.holdout = 0.2
  with pytest.raises(ValueError, match='holdout=0.2.*'
                     '--config.data.holdout='):
    check(info)
  config.data.name = 'digit_scenes'  # other images
  check(info)
  for c in (source, config):
    c.data.update(name='folder', data_dir='a')
  with pytest.raises(ValueError, match='--config.data.holdout='):
    check(_info(source, dataset={}))
  config.data.data_dir = 'b/../a/'
  with pytest.raises(ValueError, match='--config.data.holdout='):
    check(_info(source, dataset={}))
  config.data.data_dir = 'b'
  check(_info(source, dataset={}))
  for c in (source, config):
    c.data.name = 'packed'
  check(_info(source, dataset={}))
  config.data.data_dir = 'a'
  with pytest.raises(ValueError, match='--config.data.holdout='):
    check(_info(source, dataset={}))
  source.data.name, config.data.name = 'tfds:cifar10', 'tfds:cifar10:3.0.2'
  with pytest.raises(ValueError, match='--config.data.holdout='):
    check(_info(source, dataset={}))
  config.data.name = 'tfds:cifar100'
  check(_info(source, dataset={}))


def test_a_policy_was_chosen_on_the_images_that_the_run_says():
  source, config = tiny.get_config(), tiny.get_config()
  config.init.workdir = 'DIR'
  check = lambda: checks.same_search(
      _info(source), config, tiny.dataset())
  check()
  config.num_search = 5
  with pytest.raises(ValueError, match='num_search=5.*--config.num_search=16'):
    check()
  source.num_search, config.num_search = 1000, 2000  # all of the held-out ones
  check()
  config.num_search, config.data.name = 5, 'digit_scenes'
  check()


@pytest.mark.parametrize('name', ('folder', 'packed'))
def test_a_run_begins_with_the_images_that_the_run_before_it_had(name):
  """With others, the draw of what is held out is another."""
  config, dataset = tiny.get_config(), tiny.dataset()
  config.init.workdir = 'DIR'
  config.data.update(name=name, data_dir='a')
  info = _info(config, dataset=dict(split=data.fingerprint(dataset)))
  checks.same_holdout(info, config, dataset)
  grown = dataclasses.replace(dataset, train=dataset.holdout)
  with pytest.raises(ValueError, match=f'{name!r}.*DIR'):
    checks.same_holdout(info, config, grown)
  config.data.data_dir = 'b'
  checks.same_holdout(info, config, grown)
  config.data.name = 'digit_scenes'  # whose held-out digits are as they were
  checks.same_holdout(_info(config, dataset=info['dataset']), config, grown)


def test_one_class_is_no_task():
  with pytest.raises(ValueError, match="^'digits'.*1"):
    system_lib.create(tiny.get_config(), tiny.dataset(num_classes=1))


def test_only_what_changes_no_result_may_change_in_a_run():
  config = tiny.get_config()
  saved = _info(config)
  config.log_every, config.data.data_dir = 7, 'elsewhere'
  config.data.labels = 'elsewhere/labels.json'
  checks.same_run(saved, config, 'DIR')
  config.dense.learning_rate, config.seed = 0.5, 3
  with pytest.raises(ValueError,
                     match='dense.learning_rate.*seed.*--workdir'):
    checks.same_run(saved, config, 'DIR')


def test_policy_networks_are_compared_where_there_are_any():
  config = tiny.get_config()
  saved = _info(config)
  config.nets.hidden = 8
  checks.same_run(saved, config, 'DIR', nets=False)
  with pytest.raises(ValueError, match='nets.hidden'):
    checks.same_run(saved, config, 'DIR')


def test_a_field_of_an_earlier_version_keeps_its_value():
  config = tiny.get_config()
  config.data.color_jitter = 0.25
  info = _info(config)
  info['config']['data']['colour_jitter'] = (
      info['config']['data'].pop('color_jitter'))
  checks.same_run(saved_run.saved('last', 1, info).info, config, 'DIR')


def test_the_phase_that_a_run_began_from_is_compared():
  config = tiny.get_config()
  config.init.update(workdir='there', phase='policy')
  info = _info(config, began_from='policy')
  checks.same_run(info, config, 'DIR')
  config.init.update(workdir='moved', phase='')
  checks.same_run(info, config, 'DIR')
  config.init.phase = 'dense'
  with pytest.raises(ValueError, match="phase.*'policy'.*'dense'"):
    checks.same_run(info, config, 'DIR')


@pytest.mark.parametrize('phases, phase, before, learned', [
    (('dense', 'policy'), 'dense', False, False),
    (('dense', 'policy'), 'policy', False, True),
    (('dense', 'policy'), 'dense', True, False),
    (('dense', 'static'), 'static', False, False),
    (('joint', 'static'), 'static', False, True),
    (('static',), 'static', False, False),
    (('static',), 'static', True, False),  # it keeps no policy
    (('static', 'policy'), 'static', True, True),
    (('static', 'policy'), 'static', False, False),
    (('exits', 'policy'), 'exits', True, False),
    (('dense', 'policy', 'classifier_wise'), 'classifier_wise', False, True),
    (('classifier_wise',), 'classifier_wise', True, False),
])
def test_a_policy_that_no_phase_has_trained_is_known(
    phases, phase, before, learned):
  config = tiny.get_config()
  config.phases = phases
  info = _info(config, phase=phase, policy_learned=before)
  assert history.policy_has_learned(info) == learned


@pytest.mark.parametrize('learned', [True, False])
def test_a_phase_without_a_step_has_trained_nothing(learned):
  config = tiny.get_config()
  config.phases = ('warm_start',)
  assert learned == history.policy_has_learned(_info(
      config, phase='warm_start', policy_learned=learned, begun=False))


@pytest.mark.parametrize('learned', [True, False])
def test_a_policy_that_only_decides_is_as_it_was(learned):
  """Exits are trained behind it, in one run after the other."""
  config = tiny.get_config()
  config.phases = ('classifier_wise',)
  config.exits.policy = True
  assert learned == history.policy_has_learned(_info(
      config, phase='classifier_wise', policy_learned=learned))


@pytest.mark.parametrize('phase, phases, fits', [
    ('static', ('classifier_wise',), False),
    ('static', ('warm_start', 'policy'), True),
    ('static', ('dense',), True),
    ('dense', ('classifier_wise',), True),
])
def test_a_mask_is_not_forgotten(phase, phases, fits):
  config = tiny.get_config()
  config.phases = 'dense', 'static'
  info = _info(config, phase=phase)
  config.phases, config.init.workdir = phases, 'DIR'
  if fits:
    checks.mask_goes_on(info, config)
  else:
    with pytest.raises(ValueError, match='^DIR.*phases=.*classifier_wise'):
      checks.mask_goes_on(info, config)


@pytest.mark.parametrize('phases, phase, rewards, fields, priced', [
    (('dense', 'warm_start'), 'dense', {}, {}, False),
    (('dense', 'warm_start'), 'warm_start', {}, {}, True),
    (('dense', 'warm_start'), 'warm_start', {}, dict(begun=False), False),
    (('dense', 'policy'), 'policy', {'policy.reward': 'macs'}, {}, True),
    (('dense', 'policy', 'joint'), 'policy', {'policy.reward': 'split'}, {},
     False),
    (('policy',), 'policy', {'policy.reward': 'split'},
     dict(began_from='warm_start', had_price=True), True),
    (('policy',), 'policy', {'policy.reward': 'split'},
     dict(began_from='policy', had_price=False), False),
])
def test_a_price_that_a_run_brings_along_is_known(
    phases, phase, rewards, fields, priced):
  config = tiny.get_config()
  config.update_from_flattened_dict({'phases': phases, **rewards})
  assert history.has_price(_info(config, phase=phase, **fields)) == priced


def test_where_a_run_stands():
  config = tiny.get_config()
  config.phases = ('dense', 'policy')
  info = lambda phase, finished: _info(
      config, phase=phase, finished=finished, start=6 * (phase == 'policy'))
  assert history.unfinished(12, info('policy', True)) == ''
  for step, phase, finished, n in ((6, 'dense', True, 6),
                                   (8, 'policy', False, 2)):
    text = history.unfinished(step, info(phase, finished))
    assert re.search(rf"\b{n}\b.*\b6\b.*'{phase}'.*dense, policy", text)

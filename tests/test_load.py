"""A trained run as a Python function: `adavit_jax.load`."""

import pickle
import shutil

import adavit_jax
from adavit_jax.models.actions import Actions
from adavit_jax.runs import checkpoints
from adavit_jax.runs import history
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.train import state as state_lib
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import run  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
import tiny


def test_of_an_unfinished_run_it_is_said_so(run, monkeypatch, caplog):
  monkeypatch.setattr(history, 'unfinished', lambda *args: 'at step 3 of 6')
  adavit_jax.load(run[0], phase='dense')
  assert not caplog.text
  adavit_jax.load(run[0])
  assert str(run[0]) in caplog.text and 'at step 3 of 6' in caplog.text


@pytest.mark.parametrize('given', [{}, dict(phase='dense'), dict(best=True)])
def test_the_checkpoints_are_opened_once(run, monkeypatch, given):
  opened, closed = [], []

  class Counted(checkpoints.Checkpoints):

    def __init__(self, *args, **kwargs):
      opened.append(args)
      super().__init__(*args, **kwargs)

    def close(self):
      closed.append(self)
      super().close()

  monkeypatch.setattr(checkpoints, 'Checkpoints', Counted)
  adavit_jax.load(run[0], **given)
  assert opened == [(run[0],)] and len(closed) == 1


@pytest.mark.parametrize('kind, halfway, times', [
    ('best', False, 1), ('last', True, 1), ('best', False, 9)])
def test_what_a_training_replaces_is_read_again(
    run, tmp_path, monkeypatch, kind, halfway, times):
  """Between finding and reading it; both are of the newer one then."""
  shutil.copytree(f'{run[0]}/checkpoints', tmp_path / 'checkpoints')
  if kind == 'last':
    shutil.rmtree(tmp_path / 'checkpoints' / 'phases')
    shutil.rmtree(tmp_path / 'checkpoints' / 'best')
  steps, find, left = [], saved_run.Run.find, iter(range(times))

  def found_and_replaced(self, **given):
    saved = find(self, **given)
    if given:  # not the look at what is newest
      steps.append(saved.step)
      if next(left, None) is not None:
        states.replace(tmp_path, kind, halfway=halfway)
    return saved

  monkeypatch.setattr(saved_run.Run, 'find', found_and_replaced)
  load = lambda: adavit_jax.load(str(tmp_path), best=kind == 'best')
  if times > 1:
    with pytest.raises(ValueError, match='best/'):
      load()
    assert len(steps) == 5
  else:
    load()
    assert steps == [steps[0], steps[0] + 1]


def test_a_run_loads_with_actions_of_ones_own(run):
  clf = adavit_jax.load(
      run[0], actions=Actions([1, 0, 1], [0, 0, 1]), max_batch_size=3)
  clf.warm_up()
  program, = clf._programs.values()
  assert program._cache_size() == 3
  for size in (1, 2, 3, 5):
    images = np.zeros((size, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(
        clf(images).actions.keep, [[1, 0, 1, 0, 0, 1]] * size)
  assert program._cache_size() == 3
  for actions in (Actions([1, 0], [0, 0]), Actions(*np.ones((2, 4, 3)))):
    with pytest.raises(ValueError, match='^actions '):
      adavit_jax.load(run[0], actions=actions)


def test_a_classifier_is_pickled_as_a_reference_to_its_run(run, tmp_path):
  clf = adavit_jax.load(run[0], phase='warm_start', max_batch_size=3)
  for name, value in (('threshold', 0.3), ('actions', '101001')):
    setattr(clf, name, value)
    data = pickle.dumps(clf)
    assert len(data) < 2000
    got = pickle.loads(data)
    assert repr(got) == repr(clf) and got.threshold == 0.3
  moved = clf.loaded._replace(step=1)
  clf.loaded = moved
  with pytest.raises(ValueError, match='step 1 '):
    pickle.loads(pickle.dumps(clf))
  clf.loaded = None
  with pytest.raises(TypeError, match='adavit_jax.load'):
    pickle.dumps(clf)


def test_a_run_loads_with_other_attributes_of_its_model(run):
  """Those that no parameters depend on."""
  load = lambda **given: adavit_jax.load(run[0], **given).system.model
  plain = load()
  assert load(merge=1, merge_every=2) == plain.clone(merge=1, merge_every=2)
  assert load(phase='dense', merge=1) == plain.clone(merge=1)
  assert load() == plain
  for field, value in (('depth', 3), ('merging', 1), ('merge', -1)):
    with pytest.raises(ValueError, match=f'^{field}='):
      load(**{field: value})
  # Its networks have a parameter for each of 5 tokens.
  with pytest.raises(ValueError, match='nets.tokens'):
    load(merge=1)


def test_attributes_on_the_command_line():
  assert saved_run.parse_attributes(
      ['merge=8', 'keep_ratio=0.7', "merge_schedule='falling'"]) == dict(
          merge=8, keep_ratio=0.7, merge_schedule='falling')
  for text in ('merge', 'merge=', 'merge=x'):
    with pytest.raises(ValueError, match='merge.*NAME=VALUE'):
      saved_run.parse_attributes([text])


@pytest.mark.parametrize('name, value', [('thresholds', 0.5),
                                         ('rule', 'margin')])
def test_a_policy_loads_with_nothing_that_is_for_exits(run, name, value):
  with pytest.raises(ValueError, match=f'^{name}='):
    adavit_jax.load(run[0], **{name: value})


@pytest.mark.parametrize('phase', [
    pytest.param('dense', marks=pytest.mark.nightly), ''])
def test_a_run_loads_as_a_classifier(run, phase):
  """Newest: what the evaluator finds. Dense: every layer of the teacher."""
  workdir, dataset = run
  clf = adavit_jax.load(workdir, phase=phase)
  images = dataset.test.images(np.arange(len(dataset.test)))
  got = clf(images)
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  with saved_run.Run(workdir) as opened:
    state = opened.state(
        opened.find(phase=phase), trainer.system, trainer.mesh)
  params = state_lib.final_params(state)
  if phase == 'dense':
    want = trainer.evaluator.dense(params, dataset.test)
  else:
    want = trainer.evaluator.adaptive(
        params, dataset.test, knob=clf.threshold)
  np.testing.assert_array_equal(got.labels, want.prediction)
  np.testing.assert_array_equal(got.actions.keep, want.actions.keep)
  assert clf.class_names == dataset.class_names

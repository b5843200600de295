"""Where runs begin, what they refuse to begin with, and NaN: no learning."""

import dataclasses
import functools
import shutil

from adavit_jax.policies import learned
from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.runs import phase_start
from adavit_jax import errors
from adavit_jax.train import phases as phases_lib
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import states
from states import one_device  # a fixture
import tiny


@pytest.fixture(scope='module')
def nan_at():
  """{'step': at which the loss of `cheap_steps` is NaN}."""
  return {}


@pytest.fixture
def bad(nan_at):
  yield nan_at
  nan_at.clear()


@pytest.fixture(scope='module', autouse=True)
def cheap_steps(nan_at):
  """Steps that count; every fifth one changes what its phase trains."""
  @functools.cache  # so that it is traced once for all runs
  def counting(group, bad):
    def step(state, images, labels):
      del images, labels
      number = state.step + 1
      times = lambda k, tree: jax.tree.map(
          lambda x: jnp.where(number % 5, x, k * x), tree)
      state = state.replace(
          step=number, ema=state.ema and times(-2, state.ema),
          params={**state.params, group: times(-1, state.params[group])})
      return state, {
          'accuracy': 1., 'loss': jnp.where(number == bad, jnp.nan, 1.)}
    return step

  def make_step(system, phase, start):
    del system, start
    trains = phases_lib.PHASES[phase].trains
    return counting('policy' if 'policy' in trains else 'backbone',
                    nan_at.get('step', -1))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', make_step)
    yield


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
  return loop.Trainer(tiny.get_config(), str(tmp_path_factory.mktemp('whole')),
                      dataset=tiny.dataset())


@pytest.fixture(scope='module')
def whole(trainer):
  """(work directory, final state) of a run of all phases."""
  return trainer.workdir, trainer.train()


@pytest.fixture(scope='module')
def ends(trainer, whole):
  """The state at the end of each phase."""
  found = {}
  with checkpoints.Checkpoints(trainer.workdir, read_only=True) as ckpts:
    for i, phase in enumerate(tiny.PHASES):
      shapes = sharded.put_shapes(
          step_lib.abstract_state(trainer.system, phase), trainer.mesh)
      found[phase] = ckpts.restore(shapes, tiny.STEPS * (i + 1), 'phases')
  return found


def _other(whole_trainer, workdir, **fields):
  """A trainer with another config; shares the compiled evaluation."""
  config = tiny.get_config()
  config.update_from_flattened_dict(fields)
  trainer = loop.Trainer(config, str(workdir), dataset=tiny.dataset())
  trainer.evaluator = whole_trainer.evaluator
  return trainer


def test_a_directory_of_another_run_is_refused(trainer, whole):
  other = _other(trainer, whole[0], **{'dense.learning_rate': 0.5})
  with pytest.raises(ValueError, match='dense.learning_rate'):
    other.train()
  data_of_five = loop.Trainer(
      tiny.get_config(), whole[0], dataset=tiny.dataset(num_classes=5))
  with pytest.raises(ValueError, match='head/kernel'):
    data_of_five.train()


def test_data_whose_labels_mean_something_else(trainer, whole, tmp_path):
  """Only what learns its labels anew may begin from another order of them."""
  swapped = dataclasses.replace(
      tiny.dataset(), class_names=('1', '0', '2', '3'))
  def begin(workdir, **fields):
    other = _other(trainer, workdir, **fields)
    other.dataset = swapped
    return other.train()
  with pytest.raises(ValueError, match="class 0 is '1'"):
    begin(whole[0])
  init = {'init.workdir': whole[0], 'init.phase': 'dense', 'dense.steps': 1,
          'joint.steps': 1}
  with pytest.raises(ValueError, match="class 0 is '1'"):
    begin(tmp_path / 'a', phases=('joint',), **init)
  assert begin(tmp_path / 'b', phases=('dense',), **init) is not None


def test_wrong_initial_runs(trainer, whole, tmp_path):
  empty = _other(trainer, tmp_path / 'a', **{
      'phases': ('joint',), 'init.workdir': str(tmp_path / 'none')})
  with pytest.raises(ValueError, match="none' .* --workdir"):
    empty.train()
  static = _other(trainer, tmp_path / 'b', **{
      'phases': ('joint',), 'init.workdir': whole[0], 'init.phase': 'static'})
  with pytest.raises(ValueError, match="'static'"):
    static.train()
  wider = _other(trainer, tmp_path / 'c', **{
      'phases': ('joint',), 'init.workdir': whole[0], 'model.width': 32})
  with pytest.raises(ValueError, match='width=16.*--config.model.width=16'):
    wider.train()
  unfitted = _other(trainer, tmp_path / 'd', **{
      'phases': ('joint',), 'init.workdir': whole[0], 'init.phase': 'dense',
      'nets.decide': 'value'})
  with pytest.raises(ValueError, match="^nets.decide='value'.*'dense'"):
    unfitted.train()


@pytest.mark.parametrize('phase', [
    pytest.param('policy', marks=pytest.mark.nightly), 'dense'])
def test_a_run_begins_from_another_runs_parameters(
    trainer, ends, whole, tmp_path, phase):
  state = _other(trainer, tmp_path, **{
      'phases': ('warm_start',), 'init.workdir': whole[0],
      'init.phase': phase, 'warm_start.steps': 1}).train()
  assert int(state.step) == 1
  assert states.same(state.params['backbone'],
                     state_lib.final_params(ends[phase])['backbone'])
  # At its end, the phase shifted the logits to meet the budget.
  policy = ends[phase].params['policy']
  shift = (state.params['policy']['msa_net']['bias'][0]
           - policy['msa_net']['bias'][0])
  chex.assert_trees_all_close(
      state.params['policy'], learned.shifted(policy, shift), atol=1e-6)
  # Searched again after the dense phase, or taken over: they are the same.
  assert states.same(state.teacher, ends['policy'].teacher)
  assert states.same(state.params['value'], ends['policy'].params['value'])


@pytest.mark.parametrize('phase', [
    'dense', pytest.param('policy', marks=pytest.mark.nightly)])
def test_the_dense_model_teaches_on_after_a_static_phase(
    trainer, ends, whole, tmp_path, phase):
  """Which keeps no policy networks: they are new, and so are the statistics."""
  _other(trainer, tmp_path / 'static', **{
      'phases': ('static',), 'init.workdir': whole[0], 'init.phase': phase,
      'static.steps': 5, 'static.policy': 'stochastic'}).train()
  state = _other(trainer, tmp_path / 'policy', **{
      'phases': ('policy',), 'init.workdir': str(tmp_path / 'static'),
      'policy.steps': 1}).train()
  assert states.same(
      state.teacher, {'backbone': ends['dense'].ema['backbone']})
  assert not states.same(state.params['backbone'], state.teacher['backbone'])
  assert states.same(state.params['policy_stats'], phase_start.with_stats(
      trainer, state).params['policy_stats'])


def test_a_model_that_is_trained_anew_is_its_own_teacher(
    trainer, whole, tmp_path):
  """Whatever phase trains it: nothing that imitates the old one goes on."""
  state = _other(trainer, tmp_path, **{
      'phases': ('exits', 'policy'), 'init.workdir': whole[0],
      'exits.steps': 5, 'exits.batch_size': 8, 'policy.steps': 1}).train()
  assert states.same(state.teacher, {'backbone': state.params['backbone']})
  assert states.same(state.params['policy_stats'], phase_start.with_stats(
      trainer, state).params['policy_stats'])


def test_a_policy_that_goes_on_was_chosen_on_the_same_images(
    trainer, whole, tmp_path):
  other = _other(trainer, tmp_path, **{
      'phases': ('joint',), 'init.workdir': whole[0], 'num_search': 5})
  with pytest.raises(ValueError, match='^num_search=5'):
    other.train()


def test_a_resumed_run_knows_what_it_began_from(
    trainer, ends, whole, tmp_path):
  """The price that it took over must not be set anew."""
  fields = {'phases': ('dense', 'policy'), 'init.workdir': whole[0],
            'init.phase': 'policy', 'dense.steps': 1, 'policy.steps': 1}
  _other(trainer, tmp_path, **fields).train()
  for kind, step in (('phases', 2), ('best', 2)):
    shutil.rmtree(tmp_path / 'checkpoints' / kind / str(step))
  state = _other(trainer, tmp_path, **fields).train()
  assert int(state.step) == 2
  assert state.log_price == ends['policy'].log_price


def test_a_finished_phase_is_pinned_by_the_next_run_if_need_be(
    trainer, tmp_path):
  fields = {'phases': ('dense',), 'dense.steps': 1}
  _other(trainer, tmp_path, **fields).train()
  pinned = tmp_path / 'checkpoints' / 'phases' / '1'
  shutil.rmtree(pinned)  # A kill between the best checkpoint and this one.
  _other(trainer, tmp_path, **fields).train()
  assert pinned.exists()


def test_no_number_stops_the_run(trainer, tmp_path, bad):
  bad['step'] = 5
  other = _other(trainer, tmp_path, log_every=2, checkpoint_every=4)
  with pytest.raises(errors.NonFiniteError, match='step 5: loss=nan') as e:
    other.train()
  assert (e.value.step, e.value.name) == (5, 'loss')
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 4)


def test_no_number_reaches_a_checkpoint(trainer, tmp_path, bad):
  """Checked before saving, even where nothing is logged at that step."""
  bad['step'] = 3
  other = _other(trainer, tmp_path, log_every=100)
  with pytest.raises(errors.NonFiniteError):
    other.train()
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() is None


def test_masks_are_searched_with_the_averaged_weights(trainer, monkeypatch):
  """Those of a phase before, which the warm start leaves as they are."""
  state = state_lib.init_state(trainer.system, 0)
  model = state_lib.model_params(state.params)
  averaged = jax.tree.map(lambda x: x + 1, model)
  searched = []
  def search(trainer, params):
    del trainer
    searched.append(state_lib.model_params(params))
    return state.params['value'].masks
  monkeypatch.setattr(phase_start, 'static_masks', search)
  phase_start.enter(
      trainer, state.replace(teacher=model, ema=averaged), 'warm_start')
  assert states.same(searched, [averaged])


@pytest.mark.parametrize('phases', [
    pytest.param(('dense', 'policy'), marks=pytest.mark.nightly),
    ('dense', 'joint'),
    pytest.param(('dense', 'policy', 'joint'), marks=pytest.mark.nightly)],
    ids='_'.join)
def test_price_of_a_run_without_warm_start(trainer, tmp_path, phases):
  """The first phase that pays for MACs says what they cost."""
  state = _other(trainer, tmp_path, **{
      'phases': phases, 'dense.steps': 1, 'policy.steps': 1,
      'joint.steps': 1, f'{phases[-1]}.price': 0.7,
      'policy.reward': 'split' if len(phases) == 3 else 'macs'}).train()
  np.testing.assert_allclose(np.exp(state.log_price), 0.7, rtol=1e-6)

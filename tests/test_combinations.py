"""Combinations: early exits that keep learning, exits around a policy."""

import json

import adavit_jax
from adavit_jax.exits import confidence
from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.runs import saved_run
from adavit_jax.runtime import stages
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import static
import jax
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
import tiny

STEPS = 3


def _config(phases, **fields):
  config = tiny.get_config()
  config.phases = phases
  config.checkpoint_every = 2
  for phase in phases:
    config[phase].update(steps=STEPS, batch_size=8)
  config.update_from_flattened_dict(fields)
  return config


def _ravit(phases, **fields):
  """Two branches of two encoders; the policy decides inside the first."""
  return _config(phases, **{
      'model.name': 'ravit_cifar_patch4_32', 'model.depth': None,
      'model.image_size': 8, 'model.patch_size': 2, 'model.width': 8,
      'model.num_heads': 2, 'model.layers': (2, 2), 'model.factors': (2., 1.),
      **fields})


def _train(config, workdir):
  return loop.Trainer(config, str(workdir), tiny.dataset()).train()


def _rows(workdir):
  return [json.loads(line)
          for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture
def stop_at(monkeypatch):
  """Lets a signal seem to come at a step; the loop asks once a step."""
  def at(step):
    asked = iter(range(1, step + 1))
    monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                        lambda self: next(asked) == step)
  yield at
  monkeypatch.undo()


@pytest.mark.parametrize('phase, module', [
    ('dense', dense), ('static', static)])
@pytest.mark.nightly
def test_early_exits_of_a_backbone_keep_learning(phase, module):
  """Where the last exit trains it, they are added with their weights."""
  system = system_lib.create(_ravit(('dense', phase)[-1:], **{
      'init.workdir': 'there', 'exits.weights': (0.25, 1.),
      'dense.drop_path': 0., 'dense.mask_weight': 0., 'static.distill': 0.,
      'static.policy': 'mask', 'static.keep': '1' * 6}), tiny.dataset())
  data = tiny.dataset().train
  images, labels = data.images(np.arange(4)), data.labels[:4]
  targets = np.float32(np.eye(4)[labels])
  batch = step_lib.Batch(system.normalize(images), targets, labels)
  params = tiny.params(system.model)
  state = state_lib.init_state(system, 0).replace(teacher=params)

  @jax.jit
  def run(params):
    loss = lambda p: module.loss(
        system, p, state, batch, jax.random.key(0), 0.)[0]
    return jax.value_and_grad(loss)(params), stages.exit_logits(
        system.model, params, batch.images)

  (total, grads), logits = run(params)
  logits = np.float64(logits)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  first, last = -(targets * log_p).sum(-1).mean(-1)
  np.testing.assert_allclose(total, 0.25 * first + last, rtol=1e-5)
  for head in ('head_0', 'head_1'):
    assert np.abs(grads['backbone'][head]['kernel']).max() > 1e-3


@pytest.fixture(scope='module')
def everything(steps, tmp_path_factory):
  """(config, work directory, final state): a policy, then exits, in one run.

  One exit lies before the place where the policy decides.
  """
  config = _config(
      ('dense', 'policy', 'classifier_wise'), **{
          'dense.nested': 0., 'dense.mask_weight': 0.,
          'model.exits': ((1, 'mlp'), (3, 'mlp')), 'model.num_fixed': 2})
  workdir = tmp_path_factory.mktemp('everything')
  return config, workdir, _train(config, workdir)


def test_exits_are_trained_around_a_policy_in_one_run(everything, steps):
  config, workdir, state = everything
  assert int(state.step) == 3 * STEPS
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    infos = [ckpts.info(step, 'phases') for step in ckpts.steps('phases')]
  assert [info['phase'] for info in infos] == list(config.phases)
  rows = _rows(workdir)
  for i in range(2 if steps == 'trained' else 0):
    assert all(np.isfinite(row[f'classifier_wise/loss_{i}']) for row in rows
               if 'classifier_wise/loss' in row)
  held = [row['holdout/accuracy'] for row in rows if 'holdout/accuracy' in row]
  assert [np.shape(x) for x in held] == [()] * 2 + [(3,)]


def test_each_phase_goes_on_with_what_the_one_before_trained(everything):
  config, workdir, state = everything
  trainer = loop.Trainer(config, str(workdir), tiny.dataset())
  with saved_run.Run(str(workdir)) as run:
    dense, policy = (
        run.state(run.find(phase=phase), trainer.system, trainer.mesh)
        for phase in ('dense', 'policy'))
  assert states.same(state.params['backbone'], dense.ema['backbone'])
  for group in ('policy', 'policy_stats'):
    assert states.same(state.params[group], policy.params[group])
    assert not states.same(state.params[group], dense.params[group])
  changed = states.differ(state.params['heads'], policy.params['heads'])
  assert len(changed) == len(jax.tree.leaves(state.params['heads']))
  assert trainer.system.after('classifier_wise').actions is None


@pytest.mark.nightly
def test_exits_and_a_policy_are_trained_on_merged_tokens(tmp_path):
  config = _config(
      ('dense', 'policy', 'classifier_wise'), **{
          'dense.nested': 0., 'model.merge': 1, 'mac_target': 0.9,
          'model.exits': ((1, 'vit'), (3, 'mlp')), 'model.num_fixed': 2})
  state = _train(config, tmp_path)
  assert int(state.step) == 3 * STEPS
  rows = _rows(tmp_path)
  losses = [value for row in rows for key, value in row.items()
            if '/loss' in key]
  assert len(losses) > 3 and all(np.isfinite(x).all() for x in losses)
  clf = adavit_jax.load(str(tmp_path))
  images = tiny.dataset().test.images(np.arange(5))
  assert clf.system.model.merge == 1
  for threshold, exit in ((confidence.ALWAYS, 0), (confidence.NEVER, 2)):
    clf.thresholds = threshold
    np.testing.assert_array_equal(clf(images).exit, [exit] * 5)


@pytest.mark.nightly
def test_it_resumes_inside_the_last_phase(everything, tmp_path, stop_at):
  config, workdir, whole = everything
  at = 2 * STEPS + 1
  stop_at(at)
  assert _train(config, tmp_path) is None
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', at)
    assert ckpts.info(at)['phase'] == 'classifier_wise'
  stop_at(4 * STEPS)
  state = _train(config, tmp_path)
  assert states.differ(state, whole) == []
  assert _rows(tmp_path) == _rows(workdir)

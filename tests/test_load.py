"""A trained run as a Python function: `adavit_jax.load`."""

import adavit_jax
from adavit_jax.exits import confidence
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import EVAL
from adavit_jax.policies import learned
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.train import checkpoints
from adavit_jax.train import history
from adavit_jax.train import loop
from adavit_jax.train import run as run_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import run  # a fixture
from states import two_devices  # a fixture
import tiny


def test_of_an_unfinished_run_it_is_said_so(run, monkeypatch, caplog):
  monkeypatch.setattr(history, 'unfinished', lambda *args: 'at step 3 of 6')
  adavit_jax.load(run[0], phase='dense')
  assert not caplog.text
  adavit_jax.load(run[0])
  assert f'{run[0]} is at step 3 of 6, and no more' in caplog.text


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


def test_a_run_loads_with_actions_of_ones_own(run):
  clf = adavit_jax.load(
      run[0], actions=Actions([1, 0, 1], [0, 0, 1]), max_batch_size=3)
  clf.warm_up()
  compiled = clf._run._cache_size()
  assert compiled == 3
  for size in (1, 2, 3, 5):
    images = np.zeros((size, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(
        clf(images).actions.keep, [[1, 0, 1, 0, 0, 1]] * size)
  assert clf._run._cache_size() == compiled
  for actions in (Actions([1, 0], [0, 0]), Actions(*np.ones((2, 4, 3)))):
    with pytest.raises(ValueError, match='^actions '):
      adavit_jax.load(run[0], actions=actions)


@pytest.mark.parametrize('name, value', [('thresholds', 0.5),
                                         ('rule', 'margin')])
def test_a_policy_loads_with_nothing_that_is_for_exits(run, name, value):
  with pytest.raises(ValueError, match=f'^{name}='):
    adavit_jax.load(run[0], **{name: value})


@pytest.mark.parametrize('phase', ['dense', ''])
def test_a_run_loads_as_a_classifier(run, phase):
  """Newest: what the evaluator finds. Dense: every layer of the teacher."""
  workdir, dataset = run
  clf = adavit_jax.load(workdir, phase=phase)
  images = dataset.test.images(np.arange(len(dataset.test)))
  got = clf(images)
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  with run_lib.Run(workdir) as opened:
    state = opened.state(
        opened.find(phase=phase), trainer.system, trainer.mesh)
  params = system_lib.final_params(state)
  if phase == 'dense':
    want = trainer.evaluator.dense(params, dataset.test)
  else:
    want = trainer.evaluator.adaptive(
        params, dataset.test, threshold=clf.threshold)
  np.testing.assert_array_equal(got.labels, want.prediction)
  np.testing.assert_array_equal(got.actions.keep, want.actions.keep)
  assert clf.class_names == dataset.class_names


# That the policy may drop before each exit, of three behind one encoder.
LAYERS = (0,), (1, 2)


@pytest.fixture(scope='module')
def branches(run, tmp_path_factory):
  """(work directory, final state) of a RAViT with a policy."""
  config = tiny.get_config()
  config.phases = ('exits', 'warm_start', 'policy')
  config.model.name = 'ravit_cifar_patch4_32'
  config.model.depth = None  # the field of a ViT
  config.model.update(image_size=8, patch_size=2, width=8, num_heads=2,
                      layers=(2, 2), factors=(2., 1.), num_fixed=1)
  for phase in config.phases:
    config[phase].update(steps=2, batch_size=8)
  config.policy.learning_rate = 0.03  # so that images are told apart
  config.mac_target = 0.8
  workdir = str(tmp_path_factory.mktemp('branches'))
  return workdir, loop.Trainer(config, workdir, run[1]).train()


def test_a_ravit_with_a_policy_loads_as_a_cascade(branches, run):
  """It is the policy with every branch computed, but for what it spends."""
  workdir, state = branches
  images = run[1].test.images(np.arange(16))
  clf = adavit_jax.load(workdir, max_batch_size=16)
  model, nets, cost = clf.system.model, clf.system.nets, clf.system.cost

  @jax.jit
  def oracle(params, images):
    images = clf.system.normalize(images)
    x = modes.fixed(model, params, images)
    actions = learned.greedy(
        nets, params['policy'],
        learned.observe(nets, model, params, x, images))
    first, second = (
        Actions(*(a[:, np.array(layers)] for a in actions))
        for layers in LAYERS)
    x = masked.run(model, params, x, images, first, start=1, stop=2).x
    early, _ = model.classify(params['backbone'], x, 0, EVAL)
    x = masked.run(model, params, x, images, second, start=2).x
    last, _ = model.classify(params['backbone'], x, 1, EVAL)
    return actions, jnp.stack([early.total, last.total])

  actions, logits = jax.device_get(
      oracle(system_lib.final_params(state), images))
  assert len(np.unique(actions.keep, axis=0)) > 3
  macs = np.cumsum([
      [total - sum((1 - a[i]) * m[i] for i in layers for a, m in zip(
          keep, (cost.msa, cost.mlp))) for keep in zip(*actions)]
      for total, layers in zip(cost.stages, LAYERS)], axis=0)
  assert (macs[1] < sum(cost.stages)).all()

  sure = np.float64(confidence.confidences(
      confidence.RULES['entropy'], logits))
  middle = np.sort(sure[0])[[7, 8]].mean()
  for threshold in (confidence.NEVER, middle):
    clf.thresholds = threshold
    chosen = confidence.choose(sure, threshold)
    rows = np.arange(16)
    for n in (16, 1):
      got = clf(images[:n])
      np.testing.assert_array_equal(got.exit, chosen[:n])
      np.testing.assert_allclose(
          got.logits, logits[chosen, rows][:n], rtol=1e-4, atol=1e-4)
      np.testing.assert_array_equal(
          got.labels, logits[chosen, rows][:n].argmax(-1))
      np.testing.assert_array_equal(got.macs, macs[chosen, rows][:n])
  assert set(chosen) == {0, 1}


def test_before_its_policy_a_ravit_runs_all_layers(branches, run):
  workdir, state = branches
  clf = adavit_jax.load(workdir, phase='exits', max_batch_size=4)
  got = clf(run[1].test.images(np.arange(4)))
  np.testing.assert_array_equal(got.macs, sum(clf.system.plain_cost.stages))
  want = modes.forward(clf.system.model, state.params, clf.system.normalize(
      run[1].test.images(np.arange(4)))).total
  np.testing.assert_allclose(got.logits, want, rtol=1e-4, atol=1e-4)

"""A teacher that is another model: its answers, its origin, resumption."""

import dataclasses
import json
import pathlib

from adavit_jax import data
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models.actions import Actions
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.runs import teacher as teacher_lib
from adavit_jax.runtime import modes
from adavit_jax.train import distillation
from adavit_jax.train import losses
from adavit_jax.train import step as step_lib
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import joint
import efficient
import jax
import jax.numpy as jnp
import numpy as np
from one_batch import batch  # a fixture
from one_batch import classify  # a fixture
from one_batch import KEY
from one_batch import log_softmax
from one_batch import make_system
from one_batch import state  # a fixture
from one_batch import z1  # a fixture
import pytest
import states
from states import one_device  # a fixture
import tiny

STEPS = 3


def _cross_entropy(logits, targets):
  return -(targets * log_softmax(logits)).sum(-1).mean()


def test_a_teacher_sees_the_images_in_its_own_normalization():
  """As if it had normalized the pixels itself; with statistics, folded."""
  model = efficient.levit(channels=3)
  rng = np.random.default_rng(0)
  pixels = rng.uniform(size=(2, 12, 12, 3)).astype(np.float32)
  mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
  own_mean, own_std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.1)
  teacher = distillation.Teacher(model, own_mean, own_std)

  @jax.jit
  def both(params, x):
    p = models.fold(model, params)
    return (
        teacher.logits(p, (x - np.float32(mean)) / np.float32(std), mean, std),
        modes.forward(
            model, p, (x - np.float32(own_mean)) / np.float32(own_std)).total)

  got, want = both(efficient.params(model), pixels)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.std(want))


def test_a_teacher_with_a_mask_runs_what_it_was_tuned_for():
  model = tiny.model()
  params = models.fold(model, tiny.params(model))
  mask = Actions(np.float32([1, 0, 1]), np.float32([0, 1, 1]))
  teacher = distillation.Teacher(model, (0.,), (1.,), mask)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
  got, want, other = jax.jit(lambda p, x: (
      teacher.logits(p, x, (0.,), (1.,)),
      modes.forward(model, p, x, mask, mode='static').total,
      modes.forward(model, p, x).total))(params, np.float32(images))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert np.abs(other - want).max() > 0.1


@pytest.mark.parametrize('hard, temperature', [(True, 1.), (False, 3.)])
def test_two_heads_learn_from_one_teacher_each(hard, temperature):
  """DeiT's loss: the labels for the first head, the teacher for the second."""
  rng = np.random.default_rng(0)
  cls, dist, taught = jnp.float32(rng.normal(size=(3, 4, 5)))
  targets = rng.dirichlet(np.ones(5), size=4).astype(np.float32)
  c = make_system(**{'dense.distill': 0.3, 'dense.hard_distill': hard,
                     'dense.temperature': temperature}).config.dense
  def by_hand(student):
    if hard:
      return _cross_entropy(student, np.eye(5)[taught.argmax(-1)])
    log_p, log_q = (log_softmax(x / temperature) for x in (taught, student))
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
  for second in (dist, None):
    got = losses.supervised(models.Logits(cls, second), targets, taught, c)
    want = 0.7 * _cross_entropy(cls, targets) + 0.3 * by_hand(
        cls if second is None else dist)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # Heads that only training uses learn alike, for half of the loss.
    one = losses.supervised(models.Logits(dist), targets, taught, c)
    both = models.Logits(cls, second, models.Logits(dist))
    np.testing.assert_allclose(
        losses.supervised(both, targets, taught, c), (got + one) / 2, rtol=1e-6)
    np.testing.assert_array_equal(both.total, both._replace(aux=None).total)
  alone = losses.supervised(models.Logits(cls, dist), targets, None, c)
  np.testing.assert_allclose(alone, losses.head_cross_entropy(
      models.Logits(cls, dist), targets))


def test_dense_and_path_learn_from_the_logits_of_the_batch(
    state, batch, classify):
  ones = np.ones(3, np.float32)
  logits = classify(Actions(ones, ones))
  taught = jnp.float32(np.random.default_rng(5).normal(size=(4, 4)))
  batch = batch._replace(taught=taught)
  system = make_system(**{
      'dense.nested': 0.25, 'dense.mask_weight': 0., 'dense.drop_path': 0.,
      'dense.distill': 0.3})
  total, (metrics, _) = jax.jit(
      lambda p: dense.loss(system, p, state, batch, KEY, 0.))(state.params)
  hard = _cross_entropy(logits, np.eye(4)[taught.argmax(-1)])
  want = 0.7 * _cross_entropy(logits, batch.targets) + 0.3 * hard
  np.testing.assert_allclose(metrics['loss'], want, rtol=1e-5)
  np.testing.assert_allclose(total, want + 0.25 * metrics['nested_loss'],
                             rtol=1e-5)

  def path(params, taught):
    c = system.config.static
    start = joint.training_pass.begin(system, params, batch.images)
    return joint.path_loss(system, c, params, start, state.teacher,
                           batch._replace(taught=taught), Actions(ones, ones))
  _, (metrics, _) = jax.jit(path)(state.params, taught)
  log_p, log_q = (log_softmax(x / 2) for x in (taught, logits))
  kl = 4 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
  np.testing.assert_allclose(metrics['distill_loss'], kl, rtol=1e-5)


def _config(**fields):
  """A short dense phase that compiles fast, of a student with two heads."""
  config = tiny.get_config()
  config.phases = ('dense',)
  config.model.update(depth=2, distillation=True)
  config.dense.update(steps=STEPS, nested=0., mask_weight=0., ema=0.)
  config.data.update(mixup=0.8, cutmix=1.)
  config.checkpoint_every = 1
  config.update_from_flattened_dict(fields)
  return config


def _trainer(workdir, dataset=None, **fields):
  # Without held-out images nothing is evaluated, so nothing compiled.
  empty = data.ArraySplit(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0))
  return loop.Trainer(_config(**fields), str(workdir), dataset=(
      dataclasses.replace(dataset or tiny.dataset(), holdout=empty)))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Directory of a run with one head, whose steps add noise."""
  workdir = str(tmp_path_factory.mktemp('teacher'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', states.noise)
    _trainer(workdir, **{'model.distillation': False, 'data.mean': (0.2,),
                         'data.std': (0.5,)}).train()
  return workdir


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """(work directory, final state) of a student of that run."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, _trainer(workdir, **{'teacher.workdir': run}).train()


@pytest.mark.nightly
def test_a_student_is_resumed_bit_for_bit(run, whole, tmp_path, monkeypatch):
  fields = {'teacher.workdir': run}
  stops = iter([False, True])
  monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                      lambda self: next(stops, False))
  assert _trainer(tmp_path, **fields).train() is None
  trainer = _trainer(tmp_path, **fields)
  got = trainer.train()
  assert not states.differ(got, whole[1])
  rows = [json.loads(line) for line in
          pathlib.Path(tmp_path, 'metrics.jsonl').read_text().splitlines()]
  assert all(0 <= row['dense/teacher_accuracy'] <= 1 for row in rows
             if 'dense/loss' in row)
  # The state holds what is trained, not the teacher.
  assert jax.tree.structure(got) == jax.tree.structure(
      step_lib.abstract_state(trainer.system, 'dense'))


@pytest.mark.nightly
def test_the_teacher_must_stay_and_then_is_free_to_go(
    run, whole, tmp_path, monkeypatch):
  stops = iter([True])
  monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                      lambda self: next(stops, False))
  monkeypatch.setattr(step_lib, 'make_step', _noise)
  assert _trainer(tmp_path, **{'teacher.workdir': run}).train() is None
  for other in ({}, {'teacher.workdir': str(whole[0])}):
    with pytest.raises(ValueError, match='teacher differs.*--workdir'):
      _trainer(tmp_path, **other)
  state = _trainer(tmp_path, **{'teacher.workdir': run}).train()
  again = _trainer(tmp_path, **{'teacher.workdir': '/gone'}).train()
  assert not states.differ(again, state)


@pytest.mark.nightly
def test_a_damaged_end_of_a_phase_needs_its_teacher_again(
    run, tmp_path, monkeypatch):
  taught = []
  def make_step(system, phase, start, teacher=None):
    taught.append(teacher is not None)
    return _noise(system, phase, start)
  monkeypatch.setattr(step_lib, 'make_step', make_step)
  for _ in range(2):
    _trainer(tmp_path, **{'teacher.workdir': run}).train()
    for path in tmp_path.glob('checkpoints/phases/3/state/**/d/*'):
      path.write_bytes(path.read_bytes()[:-20])
  assert taught == [True, True]


def _noise(system, phase, start, teacher=None):
  step = states.noise(system, phase, start)
  return lambda state, images, labels, *taught_by: step(state, images, labels)


def _file(path, name, make_params):
  """Writes a file of weights; returns its model, parameters and fields."""
  model = models.create(name, channels=1, num_classes=4)
  params = make_params(model)
  weights.save(path, model, params, preprocessing=weights.Preprocessing(
      (0.25,), (0.125,), 'bicubic', 0.9))
  return model, params, {'teacher.weights': str(path), 'teacher.model': name}


def test_a_file_of_another_model(tmp_path):
  model, params, fields = _file(
      tmp_path / 'a.safetensors', 'vit_digits_patch2_8', tiny.params)
  trainer = _trainer(tmp_path / 'run', **fields)
  teacher, got, digest = trainer._teacher
  assert teacher.model == model and teacher.actions is None
  assert (teacher.mean, teacher.std) == ((0.25,), (0.125,))
  jax.tree.map(np.testing.assert_array_equal, got, models.fold(model, params))
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(got))
  assert trainer.info('dense', 0, False)['taught_by'] == digest != ''
  groups = models.fold(model, params)
  actions = Actions(np.ones(2), np.ones(2))
  assert len({teacher_lib._digest(t, groups) for t in (
      teacher, dataclasses.replace(teacher, mean=(0.5,)),
      dataclasses.replace(teacher, actions=actions))}) == 3
  with pytest.raises(ValueError, match=r'a.safetensors.*4 classes.*5: train'):
    _trainer(tmp_path / 'run', tiny.dataset(num_classes=5), **fields)
  *_, fields = _file(
      tmp_path / 'b.safetensors', 'levit_cifar_32', efficient.params)
  with pytest.raises(ValueError, match=r"'levit_cifar_32'.*image_size=32 \(no"):
    _trainer(tmp_path / 'run', **fields)


@pytest.mark.parametrize('fields, message', [
    ({'teacher.workdir': '/none'}, "'/none' has no checkpoint"),
    ({'teacher.workdir': 'OWN'}, 'teacher.workdir=.* of this run'),
    ({'teacher.workdir': 'RUN', 'teacher.phase': 'joint'}, "phase 'joint'"),
    ({'teacher.workdir': 'RUN', 'model.image_size': 16, 'data.image_size': 16},
     'teacher.workdir=.*image_size=8.*16'),
    ({'teacher.weights': '/none.npz', 'teacher.model': 'levit_cifar_32'},
     'teacher.weights=.*/none.npz does not exist'),
    ({'teacher.weights': '/none.npz', 'teacher.model': 'levit_33'},
     "'levit_33'"),
    ({'teacher.weights': '/none.npz'}, 'teacher.model=.* go together'),
    ({'teacher.model': 'levit_cifar_32', 'teacher.workdir': 'a'},
     'teacher.model=.* go together'),
    ({'teacher.workdir': 'a', 'teacher.weights': 'b'}, 'teacher.*both set'),
    ({'teacher.phase': 'dense'}, "teacher.phase='dense'.*teacher.workdir"),
    ({'teacher.model': 'levit_cifar_32'}, 'teacher.model=.*teacher.weights'),
    ({'teacher.phases': ('exits',)}, "teacher.phases='exits'.*'dense'"),
    ({'teacher.workdir': 'a', 'teacher.phases': ('joint',)},
     r"teacher.phases=\('joint',\)"),
    ({'teacher.workdir': 'a', 'dense.distill': 0.}, 'dense.distill=0'),
    ({'teacher.workdir': 'RUN', 'dense.distill': 1.}, 'dense.distill=1'),
    ({'dense.distill': 1.5}, 'dense.distill=1.5'),
    ({'dense.temperature': 0.}, 'dense.temperature=0'),
])
def test_what_cannot_teach(run, tmp_path, fields, message):
  places = {'RUN': run, 'OWN': str(tmp_path / 'run' / '..' / 'run')}
  fields = {k: places.get(v, v) if isinstance(v, str) else v
            for k, v in fields.items()}
  with pytest.raises(ValueError, match=message):
    _trainer(tmp_path / 'run', **fields)
  assert not (tmp_path / 'run').exists()


def test_other_classes_cannot_teach(run, tmp_path):
  for dataset, message in (
      (tiny.dataset(num_classes=5), 'num_classes=4.* 5'),
      (dataclasses.replace(tiny.dataset(), class_names=('1', '0', '2', '3')),
       "class 0 is '1'")):
    with pytest.raises(ValueError, match=message):
      _trainer(tmp_path, dataset, **{'teacher.workdir': run})

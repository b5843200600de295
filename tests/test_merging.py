"""Token merging: against NumPy, in every mode, its cost, its attributes."""

import copy
import json
import subprocess

from adavit_jax import cost
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models import merging
from adavit_jax.models import merging_plan
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Bridge
from adavit_jax.policies import fixed
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
import efficient
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import numpy_merging
from PIL import Image
import products
import pytest
import tiny

nightly = lambda **values: pytest.param(values, marks=pytest.mark.nightly)


def _model(**overrides):
  """17 tokens, or 18 with distillation."""
  return tiny.model(**{**dict(patch_size=2, depth=3, merge=3), **overrides})


@pytest.mark.parametrize('prefix, num, r', [
    (1, 7, 1), (1, 20, 8), (2, 33, 13), (2, 7, 2)])
def test_the_most_similar_pairs_merge(prefix, num, r):
  rng = np.random.default_rng(num)
  x, metric = rng.normal(size=(2, 2, num, 5))
  size = rng.integers(1, 5, (2, num)).astype(float)

  @jax.jit
  def run(x, size, metric):
    pairs = merging.match(metric, r, prefix)
    return merging.merge(x, size, pairs, prefix)

  got = run(*map(jnp.float32, (x, size, metric)))
  for i in range(2):
    tokens = [numpy_merging.Token(*one, prefix=n < prefix)
              for n, one in enumerate(zip(x[i], size[i]))]
    want = numpy_merging.merge(
        tokens, numpy_merging.pairs(tokens, metric[i], r))
    np.testing.assert_allclose(
        got[0][i], [t.x for t in want], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[1][i], [t.size for t in want])


@pytest.mark.parametrize('overrides', [
    dict(distillation=True), nightly(merge_every=2, merge_schedule='falling'),
    nightly(merge_schedule='falling', depth=4), nightly(merge=1),
    nightly(merge=8, depth=5), nightly(merge=8, depth=5, distillation=True),
    nightly(depth=5, merge_every=2, distillation=True),
    nightly(depth=5, merge_every=3), nightly(merge=13, merge_every=2)])
def test_it_equals_token_after_token(overrides):
  model = _model(num_fixed=0, **overrides)
  params, images = tiny.params(model), efficient.images(model, 2)
  keep = np.random.default_rng(3).uniform(0.2, 1, (2, 2, model.depth))

  @jax.jit
  def run(params, images, gates):
    x, states = modes.embed(model, params, images).x, []
    for i in range(model.depth):
      here = plan.cut(model, gates, i, i + 1)
      x = masked.run(model, params, x, images, here, start=i, stop=i + 1).x
      states.append((x['tokens'], x['size']))
    return states, modes.classify(model, params, x).total

  states, logits = run(params, images, Actions(*jnp.float32(keep)))
  params = jax.tree.map(np.float64, params)
  for i, image in enumerate(np.float64(images)):
    want, want_logits = numpy_merging.forward(model, params, image, keep[:, i])
    for a, b in zip(states[:-1], want):
      np.testing.assert_array_equal(a[1][i], b[1])
      np.testing.assert_allclose(a[0][i], b[0], rtol=1e-5, atol=1e-4)
    # The last encoder merges nothing, which the logits do not show.
    np.testing.assert_allclose(logits[i], want_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('overrides', [
    dict(depth=2, num_fixed=0, distillation=True), nightly(depth=4),
    nightly(num_fixed=0, depth=4, merge_every=2), nightly(merge=20),
    nightly(depth=4, merge_schedule='falling', num_fixed=0)])
def test_modes_agree(overrides):
  efficient.check_modes(_model(**overrides))


@pytest.mark.nightly
@pytest.mark.parametrize('overrides', [
    {}, dict(distillation=True, num_fixed=2), dict(merge_every=2)])
def test_exits_agree_in_every_mode(overrides):
  efficient.check_exits(_model(
      depth=4, exits=((2, 'vit'), (3, 'mlp')), **overrides))


@pytest.mark.nightly
@pytest.mark.parametrize('overrides', [
    dict(depth=2), dict(merge_every=2), dict(distillation=True)])
def test_the_dense_forms_agree(overrides):
  model = _model(**overrides)
  models.check_backbone(model)
  params, images = tiny.params(model), efficient.images(model)
  dense, plain = jax.jit(lambda p, x: (
      modes.forward(model, p, x).total,
      model.apply({'params': p['backbone']}, x).total))(params, images)
  np.testing.assert_allclose(dense, plain, **efficient.CLOSE)


def _tokens(model):
  """Tokens after each encoder."""
  return [plan.tokens_at(model, i + 1).num for i in range(model.depth)]


def test_the_number_of_tokens():
  model = models.create('vit_tiny_patch16_224', merge=13)
  assert plan.num_encoders(model) == 12
  assert _tokens(model) == [197 - 13 * i for i in range(1, 12)] + [54]
  assert [plan.tokens_at(model, i).grid for i in (0, 1)] == [(14, 14), None]
  every = model.clone(merge_every=4)
  assert [type(item) is Bridge for item in every.plan()] == [0, 1, 0, 1, 0]
  assert _tokens(every) == [197] * 4 + [145] * 4 + [93] * 4
  # 98 of 196 patches, then 49 of 98, and so on.
  assert _tokens(model.clone(merge=200))[:4] == [99, 50, 26, 14]
  assert _tokens(model.clone(merge=200))[-1] == 2
  falling = merging.schedule(13, 12, 'falling')
  assert falling[0] == 26 and falling[-1] == 0 and sum(falling) == 13 * 12
  assert sorted(falling, reverse=True) == list(falling)
  assert merging.schedule(13, 12, 'constant') == (13,) * 12


def test_without_merging_it_is_the_plain_model():
  """One stack, of an array; parameters are the same with and without."""
  plain, model = tiny.model(), _model(merge=0, merge_every=9, patch_size=4,
                                      depth=4)
  stack, = model.plan()
  assert stack._replace(branches=()) == plain.plan()[0]._replace(branches=())
  assert [b._replace(run=None) for b in stack.branches] == [
      b._replace(run=None) for b in plain.plan()[0].branches]
  shapes = [jax.eval_shape(lambda m=m: (
      models.init_params(m, jax.random.key(0)))) for m in (
          plain, plain.clone(merge=1))]
  assert shapes[0] == shapes[1]
  x = jax.eval_shape(lambda p, x: modes.embed(model, p, x).x, shapes[0],
                     efficient.images(model))
  assert x.shape == (efficient.B, 5, 16)


@pytest.mark.nightly
def test_a_file_of_weights_fits_with_and_without(tmp_path):
  model, path = _model(), tmp_path / 'a.safetensors'
  weights.save(path, model, tiny.params(model))
  for merge in (0, 5):
    weights.load(model.clone(merge=merge), path, jax.random.key(0))


def _program(model, actions=None):
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  images = jax.ShapeDtypeStruct(
      (1, model.image_size, model.image_size, model.channels), jnp.float32)
  return jax.jit(lambda p, x: modes.forward(
      model, p, x, actions, mode='static').total), params, images


@pytest.mark.nightly
@pytest.mark.parametrize('overrides', [
    {}, dict(merge_every=2, distillation=True), dict(merge_schedule='falling')])
def test_macs_are_those_of_the_program(overrides):
  model = _model(depth=5, **overrides)
  num = plan.num_layers(model)
  every = fixed.all_layers(num)
  for msa, mlp in ((every.msa, every.mlp), ([1, 0, 1, 0], [1, 1, 0, 1]),
                   ([0, 1, 0, 0], [1, 0, 1, 1]), ([0] * 4, [0] * 4)):
    keep = Actions(np.float32(msa), np.float32(mlp))
    run, *shapes = _program(model, keep)
    got = products.macs(jax.make_jaxpr(run)(*shapes).jaxpr)
    assert got == cost.of(model).adaptive(keep) - cost.left_out(model, keep)


def test_tokens_that_are_not_read_are_not_computed():
  """By a loop: in an encoder behind the last MSA layer, only the prefix."""
  model = _model(depth=5, num_fixed=0)
  keep = Actions(np.array([1, 0, 1, 0, 0]), np.array([1, 1, 1, 0, 1]))
  n, d, hidden = 17, 16, model.mlp_dim
  want = model.embed_macs + d * model.num_classes
  for i, (msa, mlp) in enumerate(zip(*keep)):
    merged, rest = (3, 3, 3, 3, 0)[i], any(keep.msa[i + 1:])
    if merged and any(keep.msa[i:]):
      want += n * d * 8 + ((n + 1) // 2 - 1) * (n // 2) * 8  # match
    queries = n if rest else 1
    if msa:
      want += 2 * (queries + n) * d * d + 2 * queries * n * d
    if merged and rest:
      want += n // 2 * merged * d
    n -= merged
    if mlp:
      want += 2 * (n if rest else 1) * d * hidden
  run, *shapes = _program(model, keep)
  assert products.macs(jax.make_jaxpr(run)(*shapes).jaxpr) == want


@pytest.mark.parametrize('overrides', [
    dict(distillation=True), dict(merge_every=2)])
def test_it_fits_bfloat16_and_any_number_of_images(overrides):
  """As exported programs; only sizes, which may be large, are float32."""
  model = _model(dtype='bfloat16', **overrides)
  num, = export.symbolic_shape('num')
  x = jax.ShapeDtypeStruct((num, 8, 8, 1), jnp.float32)
  z1, logits = jax.eval_shape(
      lambda x: (modes.before_policy(model, tiny.params(model), x),
                 modes.forward(model, tiny.params(model), x).total), x)
  assert {key: str(y.dtype) for key, y in z1.items()} == dict(
      tokens='bfloat16', size='float32')
  assert logits.shape == (num, 4) and logits.dtype == jnp.float32


@pytest.mark.nightly
@pytest.mark.parametrize('overrides', [{}, dict(merge_every=3)])
def test_xla_counts_the_same_flops(overrides):
  model = models.create('vit_tiny_patch16_224', merge=13, **overrides)
  every = fixed.all_layers(plan.num_layers(model))
  run, *shapes = _program(model, every)
  flops = run.lower(*shapes).cost_analysis()['flops']
  want = cost.of(model).dense - cost.left_out(model, every)
  np.testing.assert_allclose(flops / 2, want, rtol=0.02)


def test_its_gradient_is_that_of_its_choices():
  """Finite differences, which change no choice of pairs."""
  model = _model(depth=2)
  params, images = tiny.params(model), efficient.images(model, 2)

  @jax.jit
  def run(params, images):
    loss = lambda p: (modes.forward(model, p, images).total ** 2).sum()
    return jax.value_and_grad(loss)(params)

  value, grads = run(params, images)
  leaves = jax.tree.leaves(grads)
  assert all(np.isfinite(g).all() for g in leaves)
  moved = copy.deepcopy(params)
  direction = grads['backbone']['pos_embedding']
  step = 1e-3 / np.linalg.norm(direction)
  moved['backbone']['pos_embedding'] += step * direction
  np.testing.assert_allclose(
      run(moved, images)[0] - value, step * (direction ** 2).sum(), rtol=0.05)


@pytest.mark.parametrize('field, value', [
    ('merge', -1), ('merge', True), ('merge', 2.5), ('merge', None),
    ('merge_every', 0), ('merge_every', True), ('merge_every', 3),
    ('merge_schedule', 'linear'), ('merge_schedule', None)])
def test_bad_values_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}='):
    _model(**{field: value})


def test_a_head_that_convolves_needs_a_grid():
  _model(exits=((1, 'cnn_add'),), merge_every=2)
  with pytest.raises(ValueError, match='cnn_add'):
    _model(exits=((1, 'cnn_add'),))


@pytest.mark.parametrize('change', [dict(length=2), dict(kind='mlp')])
def test_what_replaces_activations_is_checked(change):
  """It cannot be dropped, and no scan can carry it."""
  def broken(self):
    stack = merging_plan.plan(self)[0]
    if 'length' in change:
      return stack._replace(**change), *merging_plan.plan(self)[2:]
    branches = stack.branches
    return (stack._replace(branches=(
        branches[0]._replace(**change), *branches[1:])),
            *merging_plan.plan(self)[1:])
  model = _model()
  fields = {name: getattr(model, name) for name in model.__dataclass_fields__
            if name not in ('parent', 'name')}
  with pytest.raises(ValueError, match='replaces'):
    plan.check(type('Broken', (type(model),), {'plan': broken})(**fields))


@pytest.mark.nightly
def test_the_benchmark_measures_accuracy_and_time(tmp_path):
  """Of merging, of smaller images and of a selection, in its own process."""
  model = models.create('vit_cifar_patch4_32')
  weights.save(tmp_path / 'a.safetensors', model, tiny.params(model),
               preprocessing=weights.Preprocessing(
                   (0.5,) * 3, (0.5,) * 3, 'bicubic', 1.))
  for i, name in enumerate('ab'):
    (tmp_path / 'images' / name).mkdir(parents=True)
    for j in range(3):
      pixels = np.random.default_rng(2 * j + i).integers(0, 256, (32, 32, 3))
      Image.fromarray(np.uint8(pixels)).save(
          tmp_path / 'images' / name / f'{j}.png')
  subprocess.run(**tiny.command(
      'benchmarks/merging.py', '--model=vit_cifar_patch4_32', '--merges=4',
      '--every=1,3', '--batch=2', '--repeats=1', '--sizes=16', '--keeps=0.5',
      f'--weights={tmp_path}/a.safetensors', f'--data={tmp_path}/images',
      '--classes=3,5', f'--output={tmp_path}/out'), check=True)
  rows = json.loads((tmp_path / 'out.json').read_text())
  assert [row['mode'] for row in rows] == [
      'unmerged', 'merge 4, every 1', 'merge 4, every 3', '16 px',
      'keep 0.5 twice']
  for row in rows:
    assert 0 <= row['accuracy'] <= row['accuracy_among'] <= 1
    assert (row['mac_ratio'] < 1) is (row['kind'] != 'unmerged')
  assert (tmp_path / 'out.png').read_bytes()[1:4] == b'PNG'

"""The smallest efficient models that have everything, and what all pass."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import params as params_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import products

B = 3
CLOSE = dict(rtol=2e-5, atol=2e-5)
_TINY = dict(image_size=8, channels=1, num_classes=4)


def levit(**overrides):
  """Grids of 3 x 3 and 2 x 2 tokens; 4 heads for a width of 6 in the last."""
  return models.create('levit_128s', **{
      **_TINY, **dict(image_size=12, patch_size=4, widths=(8, 6), depths=(1, 2),
                      heads=(2, 4), key_dim=4), **overrides})


def shuffle(**overrides):
  """4 windows of 2 x 2 tokens, then one, with as many heads as a width has."""
  return models.create('shuffle_tiny_224', **{
      **_TINY, **dict(image_size=16, widths=(4, 6), depths=(2, 2), heads=(2, 3),
                      window_size=2, kernel_size=3, stem_width=3), **overrides})


def crossvit(**overrides):
  """4 x 4 small patches, and 2 x 2 large ones of an image of 6 x 6 pixels."""
  return models.create('crossvit_9_240', **{
      **_TINY, **dict(patch_sizes=(2, 3), scales=(1., 0.75), widths=(4, 8),
                      depth=2, num_heads=2, mlp_ratio=2., num_stages=2),
      **overrides})


def vil(**overrides):
  """A padded grid of 5 x 5 with relative biases, then a full one of 5 x 5."""
  return models.create('vil_tiny_224', **{
      **_TINY, **dict(image_size=10, patch_sizes=(2, 1), widths=(8, 12),
                      depths=(1, 2), heads=(2, 3), windows=(2, 0),
                      num_globals=(2, 0), relative=(True, False)), **overrides})


def evo(**overrides):
  """4 x 4 patches, of which 8 are updated by encoders 1 and 2, and by 3."""
  return models.create('evo_deit_tiny_224', **{
      **_TINY, **dict(patch_size=2, width=8, depth=4, num_heads=2, mlp_ratio=2.,
                      num_full=1, stage_length=2), **overrides})


def evo_levit(**overrides):
  """4 x 4 patches, of which 8 run in encoder 1, then 2 x 2, of which 2 run."""
  return models.create('evo_levit_128s', **{
      **_TINY, **dict(image_size=16, patch_size=4, widths=(8, 6), depths=(2, 2),
                      heads=(2, 4), key_dim=4, num_full=1), **overrides})


def params(model, seed=0):
  """Random groups of parameters, statistics too; every part matters."""
  shapes = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  rng = np.random.default_rng(seed)
  random = lambda x: np.float32(rng.normal(size=x.shape) * 0.4)
  positive = lambda x: np.float32(rng.uniform(0.5, 2, x.shape))
  groups = jax.tree.map(random, shapes)
  for group in shapes.get('batch_stats', {}):
    groups['batch_stats'][group] = jax.tree.map_with_path(
        lambda path, x: (positive if path[-1].key == 'var' else random)(x),
        shapes['batch_stats'][group])
  return groups


def images(model, size=B):
  rng = np.random.default_rng(1)
  s, c = model.image_size, model.channels
  return rng.normal(size=(size, s, s, c)).astype(np.float32)


def check_modes(model):
  """All modes agree on random actions, which change the logits."""
  num_layers = plan.num_layers(model)
  groups, x = params(model), images(model)
  run = jax.jit(lambda p, x, a, mode: modes.forward(
      model, p, x, a, mode=mode).total, static_argnames='mode')
  rng = np.random.default_rng(2)
  each = Actions(*(rng.integers(0, 2, (B, num)) for num in num_layers))
  want = run(groups, x, each, 'masked')
  every = Actions(*map(np.ones_like, each))
  assert np.abs(want - run(groups, x, every, 'masked')).max() > 0.01
  np.testing.assert_allclose(run(groups, x, each, 'compact'), want, **CLOSE)
  shared = Actions(*(a[0] for a in each))
  static = jax.jit(lambda p, x: modes.forward(
      model, p, x, shared, mode='static').total)
  for got in (run(groups, x[:1], shared, 'cond'), static(groups, x[:1])):
    np.testing.assert_allclose(got, want[:1], **CLOSE)


def check_exits(model):
  """All stages agree, in every mode, on actions that differ by image."""
  groups, x = models.fold(model, params(model)), images(model)
  rng = np.random.default_rng(2)
  actions = Actions(*(rng.integers(0, 2, (B, num))
                      for num in plan.num_layers(model)))

  def want(groups, x):
    logits, y, start = [], modes.embed(model, groups, x).x, 0
    gates = lambda stop: (  # the fixed encoders have none
        plan.cut(model, actions, start, stop))
    for e in plan.exits(model):
      for stop in sorted({min(max(model.num_fixed, start), e.place), e.place}):
        here = None if stop <= model.num_fixed else gates(stop)
        y = masked.run(model, groups, y, x, here, start=start, stop=stop).x
        start = stop
      logits.append(params_lib.exit_logits(model, groups, y, e)[0])
    return logits

  def got(groups, x, actions, mode):
    logits, carry = [], None
    for stage in stages.stages(
        model, decide=lambda params, z1, images: actions, mode=mode):
      carry, y = stage(groups, x, carry)
      logits.append(y)
    return logits

  want = jax.jit(want)(groups, x)
  assert len({a.tobytes() for a in map(np.asarray, want)}) == len(want)
  for mode in ('masked', 'compact'):
    for a, b in zip(jax.jit(got, static_argnums=3)(groups, x, actions, mode),
                    want):
      np.testing.assert_allclose(a, b, **CLOSE)
  one = Actions(*(a[:1] for a in actions))
  for a, b in zip(jax.jit(got, static_argnums=3)(groups, x[:1], one, 'cond'),
                  want):
    np.testing.assert_allclose(a, b[:1], **CLOSE)


def check_bfloat16(model):
  """Computes in bfloat16, and fits any number of images, as exported programs.

  Returns the shapes of (parameters, images).
  """
  groups = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  assert {x.dtype for x in jax.tree.leaves(groups)} == {jnp.dtype('float32')}
  s, c = model.image_size, model.channels
  num, = export.symbolic_shape('num')
  x = jax.ShapeDtypeStruct((num, s, s, c), jnp.float32)
  run = lambda p, x: (modes.before_policy(model, models.fold(model, p), x),
                      modes.forward(model, p, x))
  z1, logits = jax.eval_shape(run, groups, x)
  if isinstance(z1, dict):
    assert z1.pop('scores', x).dtype == jnp.float32  # they are compared
  assert {y.dtype for y in jax.tree.leaves(z1)} == {jnp.dtype('bfloat16')}
  assert {y.dtype for y in jax.tree.leaves(logits)} == {jnp.dtype('float32')}
  return groups, x


def check_macs(model):
  """The closed form is what the program multiplies, under any actions."""
  groups = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))
  s, c = model.image_size, model.channels
  image = jax.ShapeDtypeStruct((1, s, s, c), jnp.float32)
  every = fixed.all_layers(plan.num_layers(model))
  for keep in (every, Actions(*(1 - np.arange(len(a)) % 2 for a in every))):
    program = jax.make_jaxpr(lambda p, x, keep=keep: modes.forward(
        model, p, x, keep, mode='static').total)(groups, image)
    assert products.macs(program.jaxpr) == cost.of(model).adaptive(keep)

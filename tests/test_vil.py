"""Vision Longformer: its numbers, its attention, its shifts, and every mode."""

import itertools
import json
import os
import subprocess
import sys

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import sliding_chunks
from adavit_jax.models import vil_arch
from adavit_jax.models import vil_bias
from adavit_jax.models.backbone import Context
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
import efficient
import jax
import jax.numpy as jnp
import numpy as np
import numpy_vil
import pytest
import tiny

H, G, D = 2, 2, 3  # heads, global tokens, width of a head
ONE_STAGE = dict(widths=(8,), heads=(2,), patch_sizes=(2,), windows=(2,),
                 num_globals=(2,), relative=(True,))

# GMACs of the authors' code, measured with torch.
GMACS = dict(
    vil_tiny_224='1.460', vil_small_224='5.314', vil_medium_deep_224='9.418',
    vil_medium_wide_224='12.044', vil_base_deep_224='14.599',
    vil_base_wide_224='18.825')


@pytest.mark.parametrize('name', GMACS)
def test_macs_of_the_authors(name):
  """They compute keys and values twice, for global and for other queries.

  The product of weights with the values of one global token is no matrix
  product there.
  """
  model = models.create(name)
  theirs = cost.of(model).dense
  for stage, depth in zip(model.stages(), model.depths):
    if stage.window:
      n, d = stage.layout.num_tokens, stage.width
      theirs += depth * (2 * d * d * n - d * (n - 1))
  assert f'{theirs / 1e9:.3f}' == GMACS[name]


def _attend(rows, columns, window, num_global=G, *, exact, relative, drawn=None,
            seed=0):
  """Random attention, with a relative bias or none: (ours, naive inputs)."""
  at = sliding_chunks.Layout(rows, columns, window, num_global, exact)
  rng = np.random.default_rng(seed)
  random = lambda *shape: np.float32(rng.normal(size=shape))
  qkv = random(3, 2, H, at.num_tokens, D)
  tables = {name: random(*shape) for name, shape in vil_bias.shapes(
      rows, window, H, num_global).items()} if relative else {}

  def run(qkv, tables):
    biases = None
    if tables:
      biases = vil_bias.local(tables, window), (
          vil_bias.of_global(tables, rows * columns) if num_global else None)
    return sliding_chunks.sliding_attention(*qkv, at, biases, drawn=drawn)

  return run, qkv, tables


def _naive(rows, columns, window, qkv, tables, exact, num_global=G):
  added = 0.
  if tables:
    added = numpy_vil.biases([
        tables.get(name) for name in ('table', 'table_global', 'table_within')],
        rows, columns, window, num_global)
  allow = numpy_vil.seen(rows, columns, window, num_global, exact)
  return numpy_vil.attention(*np.float64(qkv), allow, added)


# One chunk, whole ones, and ones that are filled up in rows, columns or both.
GRIDS = [(7, 5, 2), (4, 4, 4), (8, 8, 2), (6, 9, 3), (7, 6, 3), (3, 8, 2),
         (2, 3, 4)]


@pytest.mark.parametrize('grid', [
    GRIDS[0], *(pytest.param(grid, marks=pytest.mark.nightly)
                for grid in GRIDS[1:])])
def test_attention_equals_masked_full_attention(grid):
  cases = [_attend(*grid, exact=exact, relative=relative)
           for exact, relative in itertools.product((False, True), repeat=2)]
  got = jax.jit(lambda args: [run(*a) for (run, *_), a in zip(cases, args)])(
      [args for _, *args in cases])
  for y, (_, qkv, tables), exact in zip(got, cases, (False, False, True, True)):
    want = _naive(*grid, qkv, tables, exact)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_a_drawn_neighbor_is_the_only_one():
  """With biases, and without global tokens; under every draw of the eight."""
  rows, columns, window = 5, 4, 2
  run, qkv, tables = _attend(rows, columns, window, 0, exact=True,
                             relative=True)
  at = sliding_chunks.Layout(rows, columns, window, 0, True)
  biases = jax.jit(lambda t: vil_bias.local(t, window))(tables)
  got = jax.jit(jax.vmap(lambda i: sliding_chunks.sliding_attention(
      *qkv, at, (biases, None), drawn=i)))(jnp.arange(8))
  added = numpy_vil.biases([tables['table']], rows, columns, window, 0)
  place = np.array([divmod(i, columns) for i in range(rows * columns)])
  chunk = place // window
  apart = chunk[None] - chunk[:, None]  # from each query to each key
  every = numpy_vil.seen(rows, columns, window, 0, True)
  steps = [s for s in itertools.product((-1, 0, 1), repeat=2) if s != (0, 0)]
  for y, step in zip(got, steps):
    allow = every & ((apart == step).all(-1) | (apart == 0).all(-1))
    want = numpy_vil.attention(*np.float64(qkv), allow, added)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_no_array_grows_with_the_square_of_the_tokens():
  def largest(side):
    at = sliding_chunks.Layout(side, side, 4, 1)
    x = jax.ShapeDtypeStruct((1, 1, at.num_tokens, 2), jnp.float32)
    program = jax.make_jaxpr(
        lambda x: sliding_chunks.sliding_attention(x, x, x, at))(x)
    return max(v.aval.size for eqn in program.jaxpr.eqns for v in eqn.outvars)
  assert largest(64) < 4.2 * largest(32) < 4.2**2 * largest(16)


@pytest.mark.nightly
def test_random_shift_ends_with_the_steps():
  """Each step and encoder draws its own neighbor, and evaluation none."""
  model = efficient.vil(**{
      **ONE_STAGE, **dict(depths=(2,), num_globals=(0,), relative=(False,),
                          random_shift=0.75)})
  params, images = efficient.params(model), efficient.images(model)

  @jax.jit
  def run(key, progress):
    ctx = Context(True, key, {}, progress)
    x = modes.embed(model, params, images, ctx).x
    return masked.run(model, params, x, stop=2, ctx=ctx).x

  @jax.jit
  def without(key):  # without shifts: inference; phases of no progress
    x = modes.embed(model, params, images).x
    return [masked.run(model, params, x, stop=2, ctx=ctx).x
            for ctx in (Context(), Context(True, key, {}))]

  keys = jax.random.split(jax.random.key(0), 20)
  want, fine_tuning = without(keys[0])
  np.testing.assert_allclose(fine_tuning, want, **efficient.CLOSE)
  np.testing.assert_allclose(run(keys[0], 0.75), want, **efficient.CLOSE)
  shifted = {np.asarray(run(key, 0.74)).tobytes() for key in keys}
  # More than the 8 that one draw for both encoders would give.
  assert 8 < len(shifted) <= 20
  again = run(keys[0], 0.)
  np.testing.assert_array_equal(again, run(keys[0], 0.74))
  assert np.abs(again - want).max() > 0.01


def test_the_contract_is_kept():
  models.check_backbone(efficient.vil(exits=((1, 'vit'), (2, 'cnn_add'))))


@pytest.mark.parametrize('overrides', [
    dict(ONE_STAGE, depths=(1,), num_fixed=0),
    *(pytest.param(overrides, marks=pytest.mark.nightly) for overrides in (
        dict(num_fixed=0), dict(num_fixed=1), dict(num_fixed=2),
        dict(num_fixed=0, windows=(0, 2), num_globals=(0, 1),
             exact_windows=True),
        dict(num_fixed=1, relative=(False, True), num_globals=(1, 1))))])
def test_modes_agree(overrides):
  efficient.check_modes(efficient.vil(**overrides))


@pytest.mark.nightly
def test_exits_agree_in_every_mode():
  efficient.check_exits(efficient.vil(exits=((1, 'mlp'), (2, 'cnn_add'))))


def test_macs_are_those_of_the_program():
  efficient.check_macs(efficient.vil(num_fixed=0))


@pytest.mark.nightly
def test_xla_counts_the_same_macs():
  """Beside products it counts softmax, LayerNorm and GELU: 1.5 % more."""
  model = models.create('vil_tiny_224')
  params = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

  def run(params, x):
    x = modes.embed(model, params, x).x
    # A loop would be counted once.
    x = masked.run(model, params, x, unroll=max(model.depths)).x
    return modes.classify(model, params, x).total

  flops = jax.jit(run).lower(params, image).cost_analysis()['flops']
  assert 1 < flops / 2 / cost.of(model).dense < 1.02


@pytest.mark.nightly
@pytest.mark.parametrize('gradient', [False, True])
def test_the_benchmark_of_local_attention(gradient, tmp_path):
  # In a process of its own: benchmarks share names of flags.
  path = tmp_path / 'rows.json'
  subprocess.run(
      [sys.executable, 'benchmarks/local_attention.py', '--sides=4',
       '--window=2', '--repeats=1', f'--gradient={gradient}',
       f'--output={path}'],
      cwd=tiny.ROOT, env={**os.environ, 'PYTHONPATH': tiny.ROOT}, check=True)
  rows = json.loads(path.read_text())
  # Of 17 tokens; of 9 and of 2 chunks, and the global one; width 96.
  assert [row['macs'] for row in rows] == [
      192 * n for n in (17 * 17, 16 * 37 + 17, 16 * 9 + 17)]
  assert all(row['time_ms'] > 0 for row in rows)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  efficient.check_bfloat16(efficient.vil(dtype='bfloat16'))


def test_architecture_strings():
  arch = ('l1,h1,d48,n1,s1,g1,p4,f7_l2,h3,d96,n1,s1,g1,p2,f7_'
          'l3,h3,d192,n9,s0,g1,p2,f7_l4,h6,d384,n1,s0,g0,p2,f7')
  want = models.create('vil_tiny_224')
  got = models.create('vil_small_224', **vil_arch.parse(arch))
  assert got == want
  # Defaults; and full attention in a stage stays so.
  assert vil_arch.parse('p4,s0,a0_l2,g0,f3') == dict(
      widths=(192, 192), depths=(1, 1), heads=(3, 3), patch_sizes=(4, 2),
      windows=(0, 0), num_globals=(1, 0), relative=(True, False))


@pytest.mark.parametrize('arch, part', [
    ('l2,h3', "'l2' of stage 1"), ('l1,h0', "'h0'"), ('l1,x3', "'x3'"),
    ('l1_l2,s2', "'s2' of stage 2"), ('l1,h3,h3', "'h3'"), ('', "''"),
    ('l1,f0', "'f0'"), ('l1,h-1', "'h-1'")])
def test_wrong_architectures(arch, part):
  with pytest.raises(ValueError, match=part):
    vil_arch.parse(arch)


@pytest.mark.parametrize('overrides, field', [
    (dict(widths=()), r'widths=\(\)'),
    (dict(depths=(1,)), r'depths=\(1,\)'),
    (dict(heads=(2, 5)), r'heads=\(2, 5\).*12 of widths'),
    (dict(windows=(2, -1)), r'windows=\(2, -1\)'),
    (dict(windows=7), 'windows=7'),
    (dict(num_globals=(1, 1.)), 'num_globals'),
    (dict(relative=(1, 0)), r'relative=\(1, 0\)'),
    (dict(widths=(8, 9)), r'widths=\(8, 9\): 9 must be even'),
    (dict(patch_sizes=(2, 2)), r'patch_sizes=\(2, 2\).*side 5 before stage 1'),
    (dict(patch_sizes=(2, 9)), 'patch_sizes'),
    (dict(exact_windows=1), 'exact_windows=1'),
    (dict(random_shift=1.5), 'random_shift=1.5'),
    (dict(random_shift='1'), "random_shift='1'"),
    (dict(num_fixed=3), 'num_fixed=3'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    efficient.vil(**overrides)

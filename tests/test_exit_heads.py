"""The exit heads against NumPy, by what they read, and their cost."""

import functools
import math

from adavit_jax import models
from adavit_jax.models import exit_heads
from adavit_jax.models import head_modules
from adavit_jax.models.backbone import Tokens
from adavit_jax.runtime import modes
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cost
import tiny

GRID = (3, 5)
HEADS = 2


def _at(num_prefix=1):
  return Tokens(width=8, num=num_prefix + math.prod(GRID), prefix=num_prefix,
                grid=GRID, num_heads=HEADS, mlp_dim=12)


def _head(name, num_prefix=1, num_outputs=3, **more):
  return exit_heads.create(name, _at(num_prefix), num_outputs, **more)


def _tokens(num_prefix=1, seed=1):
  rng = np.random.default_rng(seed)
  shape = (2, num_prefix + math.prod(GRID), 8)
  return rng.normal(0.5, 2, shape).astype(np.float32)


def _params(head, tokens):
  """Random parameters, so that every one of them matters."""
  shapes = jax.eval_shape(head.init, jax.random.key(0), tokens)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: rng.normal(size=x.shape, scale=0.5).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def _apply(head, params, tokens):
  return head.apply({'params': params}, tokens)


_erf = np.vectorize(math.erf)


def _gelu(x):
  return x * 0.5 * (1 + _erf(x / 2 ** 0.5))


def _dense(p, x):
  return x @ p['kernel'] + p['bias']


def _mlp(p, x):
  return _dense(p['fc2'], _gelu(_dense(p['fc1'], x)))


def _norm(p, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def _encoder(p, x):
  b, n, d = x.shape
  heads = lambda y: y.reshape(b, n, HEADS, -1).transpose(0, 2, 1, 3)
  q, k, v = map(heads, np.split(
      _dense(p['qkv'], _norm(p['norm1'], x)), 3, axis=-1))
  a = np.exp(q @ k.transpose(0, 1, 3, 2) / math.sqrt(d // HEADS))
  y = (a / a.sum(-1, keepdims=True)) @ v
  x = x + _dense(p['proj'], y.transpose(0, 2, 1, 3).reshape(b, n, d))
  return x + _mlp(p, _norm(p['norm2'], x))


def _affine(p, name, x):
  return x * p[f'{name}_scale'] + p[f'{name}_shift']


def _convolve(p, patches):
  """3x3 convolution, ELU and pooling of [B, n, D], one cell at a time."""
  gh, gw = GRID
  image = {divmod(i, gw): patches[:, i] for i in range(gh * gw)}
  cells = {}
  for r, c in image:
    near = [(image[r + i, c + j], p['kernel'][i + 1, j + 1])
            for i in (-1, 0, 1) for j in (-1, 0, 1) if (r + i, c + j) in image]
    x = sum(x @ kernel for x, kernel in near) + p['bias']
    cells[r, c] = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
  pooled = [
      np.max([cells[2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)
              if (2 * r + i, 2 * c + j) in cells], axis=0)
      for r in range(2) for c in range(3)]
  return np.stack(pooled, 1).reshape(len(patches), -1)


def _reference(name, p, tokens, num_prefix):
  """The heads in float64."""
  tokens = tokens.astype(np.float64)
  # Without a class token the mean over all tokens stands in for it.
  num_cls = num_prefix or tokens.shape[1]
  if name == 'vit':
    x = _norm(p['norm'], _encoder(p['encoder'], tokens))[:, :num_cls].mean(1)
  elif name == 'resmlp':
    x = tokens[:, num_prefix:]
    mix = p['patch_mix']
    y = np.einsum('bnd,nm->bmd', _affine(p, 'affine1', x), mix['kernel'])
    x = x + p['scale1'] * (y + mix['bias'][:, None])
    x = x + p['scale2'] * _mlp(p['channel_mlp'], _affine(p, 'affine2', x))
    x = _affine(p, 'affine', x).mean(1)
  elif name == 'mlp_mixer':
    y = _norm(p['norm1'], tokens).transpose(0, 2, 1)
    x = tokens + _mlp(p['token_mlp'], y).transpose(0, 2, 1)
    x = x + _mlp(p['channel_mlp'], _norm(p['norm2'], x))
    x = _norm(p['norm'], x)[:, :num_cls].mean(1)
  else:
    x = _norm(p['norm'], tokens)
    cls = x[:, :num_cls].mean(1, keepdims=True)
    patches = x[:, num_prefix:]
    if name == 'mlp':
      x = _gelu(_mlp(p['mlp'], cls[:, 0]))
    elif name == 'cnn_add':
      x = _convolve(p['conv'], patches + cls)
    elif name == 'cnn_project':
      both = np.concatenate([patches, cls + 0 * patches], -1)
      x = _convolve(p['conv'], _gelu(_dense(p['project'], both)))
    else:
      x = _convolve(p['conv'], patches)
  return _dense(p['head'], x)


@pytest.mark.parametrize('num_prefix', [
    0, pytest.param(1, marks=pytest.mark.nightly), 2])
@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_against_numpy(name, num_prefix):
  head, tokens = _head(name, num_prefix), _tokens(num_prefix)
  params = _params(head, tokens)
  got = _apply(head, params, tokens)
  assert got.shape == (2, 3) and got.dtype == jnp.float32
  want = _reference(name, params, tokens, num_prefix)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('distillation', [
    pytest.param(False, marks=pytest.mark.nightly), True])
def test_vit_head_is_the_backbones_next_encoder(distillation):
  """One encoder and the classifier of a model, given its tokens."""
  vit = tiny.model(depth=2, distillation=distillation)
  head = exit_heads.create('vit', vit.at, 4)
  params = tiny.params(vit)['backbone']
  tokens = np.random.default_rng(0).normal(
      size=(2, vit.num_tokens, vit.width)).astype(np.float32)

  @jax.jit
  def plain(params, tokens):
    encoder = jax.tree.map(lambda x: x[0], params['encoders'])
    x = vit.encoder.apply({'params': encoder}, tokens)
    return encoder, modes.classify(vit, {'backbone': params}, x).total

  if distillation:  # the mean of both tokens through one linear layer
    params['head_dist'] = params['head']
  encoder, want = plain(params, tokens)
  got = _apply(head, dict(encoder=encoder, norm=params['norm'],
                          head=params['head']), tokens)
  np.testing.assert_allclose(
      got, want, rtol=1e-4, atol=1e-5)


def test_a_patch_moves_the_cells_around_it():
  """The pooled image itself, read through an identity as the last layer."""
  gh, gw = GRID
  size = 2 * 3 * head_modules.FILTERS
  head, base = _head('cnn_ignore', num_outputs=size), _tokens()[:1]
  params = _params(head, base)
  params['head'] = dict(kernel=np.eye(size), bias=np.zeros(size))
  batch = np.repeat(base, 1 + gh * gw, 0)
  for i in range(gh * gw):
    batch[1 + i, 1 + i] = _tokens(seed=2)[0, 1 + i]
  out = np.asarray(_apply(head, params, batch)).reshape(-1, 2, 3, 16)
  moved = np.any(np.abs(out[1:] - out[:1]) > 1e-4, -1)  # [patch, 2, 3]
  for i in range(gh * gw):
    r, c = divmod(i, gw)
    cells = {(y // 2, x // 2) for y in range(max(r - 1, 0), min(r + 2, gh))
             for x in range(max(c - 1, 0), min(c + 2, gw))}
    assert set(zip(*np.nonzero(moved[i]))) == cells


def _tokens_read(name, num_prefix):
  """Whether each token counts, [P + n]."""
  head, tokens = _head(name, num_prefix), _tokens(num_prefix)
  params = _params(head, tokens)
  batch = np.repeat(tokens[:1], 1 + tokens.shape[1], 0)
  for i in range(tokens.shape[1]):
    batch[1 + i, i] = tokens[1, i]
  out = np.asarray(_apply(head, params, batch))
  return np.any(np.abs(out[1:] - out[:1]) > 1e-4, -1)


@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_which_tokens_are_read(name):
  read = _tokens_read(name, 2)
  assert all(read[:2]) == any(read[:2]) == (
      name not in ('cnn_ignore', 'resmlp'))
  assert all(read[2:]) == any(read[2:]) == (name != 'mlp')
  assert _head(name, 2).num_read == (2 if name == 'mlp' else None)
  assert all(_tokens_read(name, 0))


@pytest.mark.parametrize('name', ['vit', 'mlp_mixer'])
def test_tokens_that_are_left_out_change_nothing(name, monkeypatch):
  class AllTokens(exit_heads.HEADS[name]):
    num_needed = None

  def gradients(head):
    loss = lambda p, x: jnp.sin(_apply(head, p, x)).sum()
    return jax.value_and_grad(loss, (0, 1))(params, tokens)

  tokens = _tokens(2)
  params = _params(_head(name, 2), tokens)
  got = gradients(_head(name, 2))
  monkeypatch.setitem(exit_heads.HEADS, name, AllTokens)
  want = gradients(_head(name, 2))
  chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_prefix', [0, 1])
@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_no_types_or_ranks_are_promoted(name, num_prefix):
  head, tokens = _head(name, num_prefix), _tokens(num_prefix)
  params = _params(head, tokens)
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    out = jax.eval_shape(lambda p: head.apply({'params': p}, tokens), params)
  assert out.dtype == jnp.float32


def test_a_fresh_resmlp_starts_as_documented():
  init = jax.jit(_head('resmlp').init)
  params = init(jax.random.key(0), _tokens())['params']
  start = dict(scale1=0.1, scale2=0.1)
  for i in ('affine1', 'affine2', 'affine'):
    start |= {f'{i}_scale': 1, f'{i}_shift': 0}
  for name, value in start.items():
    np.testing.assert_array_equal(params[name], np.full(8, value, np.float32))


@pytest.mark.parametrize('name', ['cnn_project', 'vit', 'mlp_mixer', 'resmlp'])
def test_bfloat16(name):
  tokens = _tokens()
  head = _head(name, dtype=jnp.bfloat16)
  params = _params(head, tokens)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  got = _apply(head, params, tokens.astype(jnp.bfloat16))
  want = _apply(_head(name), params, tokens)
  assert got.dtype == jnp.float32
  assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


def _abstract(name, at, num_outputs):
  head = exit_heads.create(name, at, num_outputs)
  tokens = jax.ShapeDtypeStruct((1, at.num, at.width), jnp.float32)
  params = jax.eval_shape(head.init, jax.random.key(0), tokens)['params']
  return lambda p, x: head.apply({'params': p}, x), params, tokens


def _without_prefix(at):
  return at._replace(num=at.num - at.prefix, prefix=0)


PLACES = {
    **{name: models.create(name).at for name in (
        'vit_base_patch16_224', 'deit_tiny_distilled_patch16_224',
        'vit_base_patch32_224')},  # a grid of 7 x 7: pooled with itself
    'no prefix': _without_prefix(models.create('vit_base_patch32_224').at),
    'wide': Tokens(width=24, num=1 + 3 * 6, prefix=1, grid=(3, 6), num_heads=3,
                   mlp_dim=40)}


@pytest.mark.parametrize('at', PLACES.values(), ids=PLACES)
@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_macs_are_the_programs_own(name, at):
  got = test_cost._products(*_abstract(name, at, 7))
  assert got == exit_heads.head_macs(name, at, 7)


@pytest.mark.parametrize('name, with_prefix', [
    *((name, True) for name in exit_heads.HEADS), ('mlp', False),
    *(pytest.param(name, False, marks=pytest.mark.nightly)
      for name in exit_heads.HEADS if name != 'mlp')])
def test_xla_counts_the_same_flops(name, with_prefix):
  """But for products with padding, which XLA leaves out, and the LayerNorm.

  A small convolution is so cheap that its LayerNorm is 3 % of it.
  """
  at = models.create('vit_base_patch16_224').at
  at = at if with_prefix else _without_prefix(at)
  function, params, tokens = _abstract(name, at, 10)
  flops = test_cost._flops(function, params, tokens)
  want = exit_heads.head_macs(name, at, 10)
  if name.startswith('cnn') or (name == 'mlp' and not with_prefix):
    # Without a prefix, 'mlp' too normalizes every token.
    flops -= test_cost._flops(
        lambda p, x: nn.LayerNorm(epsilon=1e-6).apply({'params': p}, x),
        params['norm'], tokens)
  if name.startswith('cnn'):
    want -= (9 * 14 ** 2 - (3 * 14 - 2) ** 2) * 768 * head_modules.FILTERS
  np.testing.assert_allclose(flops / 2, want, rtol=0.02)


@pytest.mark.parametrize('name, mmacs', [
    ('mlp', 4.7), ('cnn_ignore', 21.7), ('cnn_add', 21.7),
    ('cnn_project', 253), ('vit', 239), ('mlp_mixer', 472), ('resmlp', 954)])
def test_macs_of_the_base_model(name, mmacs):
  at = models.create('vit_base_patch16_224').at
  got = exit_heads.head_macs(name, at, 10) / 1e6
  assert round(got, 1 if mmacs < 100 else 0) == mmacs


@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_tokens_that_lie_on_no_raster(name):
  """Refused by the heads that convolve; the others never ask for it."""
  at = _at()._replace(grid=None)
  if name.startswith('cnn'):
    for check in (lambda: exit_heads.create(name, at, 3),
                  lambda: exit_heads.check_place(name, at)):
      with pytest.raises(ValueError, match=f"'{name}'.*'mlp_mixer'"):
        check()
    return
  tokens = _tokens()
  params = _params(_head(name), tokens)
  got = _apply(exit_heads.create(name, at, 3), params, tokens)
  np.testing.assert_array_equal(got, _apply(_head(name), params, tokens))
  assert exit_heads.head_macs(name, at, 3) == exit_heads.head_macs(
      name, _at(), 3)


def test_bad_input():
  at = tiny.model().at
  with pytest.raises(ValueError, match="'mlp_mix'.*'mlp_mixer'"):
    exit_heads.create('mlp_mix', at, 4)
  with pytest.raises(ValueError, match="'xyz'.*'resmlp'"):
    exit_heads.head_macs('xyz', at, 4)
  with pytest.raises(ValueError, match='num_outputs=0'):
    exit_heads.create('mlp', at, 0)
  head = exit_heads.create('mlp', at, 4)
  for shape in ((1, 4, 16), (1, 5, 8), (5, 16)):
    with pytest.raises(ValueError, match=r'tokens.*\[B, 5, 16\].* 4 patches'):
      head.init(jax.random.key(0), jnp.zeros(shape))

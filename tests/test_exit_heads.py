"""The exit heads against NumPy, by what they read, and their cost."""

import functools
import math

from adavit_jax import exit_cost
from adavit_jax import models
from adavit_jax.models import exit_heads
import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cost
import tiny

GRID = (3, 5)


def _head(name, num_prefix=1, num_outputs=3, **more):
  return exit_heads.HEADS[name](
      width=8, num_prefix=num_prefix, grid=GRID, num_outputs=num_outputs,
      num_heads=2, mlp_dim=12, **more)


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
  """The heads other than 'vit' in float64."""
  tokens = tokens.astype(np.float64)
  if name == 'resmlp':
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
    x = _norm(p['norm'], x)[:, :num_prefix].mean(1)
  else:
    x = _norm(p['norm'], tokens)
    cls = x[:, :num_prefix].mean(1, keepdims=True)
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


@pytest.mark.parametrize('num_prefix', [1, 2])
@pytest.mark.parametrize(
    'name', [name for name in exit_heads.HEADS if name != 'vit'])
def test_against_numpy(name, num_prefix):
  head, tokens = _head(name, num_prefix), _tokens(num_prefix)
  params = _params(head, tokens)
  got = _apply(head, params, tokens)
  assert got.shape == (2, 3) and got.dtype == jnp.float32
  want = _reference(name, params, tokens, num_prefix)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('distillation', [False, True])
def test_vit_head_is_the_backbones_next_encoder(distillation):
  """One encoder and the classifier of a model, given its tokens."""
  vit = tiny.model(depth=2, distillation=distillation)
  head = exit_heads.create('vit', vit, 4)
  params = tiny.params(vit)
  tokens = np.random.default_rng(0).normal(
      size=(2, vit.num_tokens, vit.width)).astype(np.float32)

  @jax.jit
  def plain(params, tokens):
    encoder = jax.tree.map(lambda x: x[0], params['fixed'])
    x = vit.encoder.apply({'params': encoder}, tokens)
    logits = vit.apply(
        {'params': params}, x[:, :vit.num_prefix], method='classify')
    return encoder, logits.total

  if distillation:  # the mean of both tokens through one linear layer
    params['head_dist'] = params['head']
  encoder, want = plain(params, tokens)
  got = _apply(head, dict(encoder=encoder, norm=params['norm'],
                          head=params['head']), tokens)
  np.testing.assert_allclose(
      got, want / vit.num_prefix, rtol=1e-4, atol=1e-5)


def test_a_patch_moves_the_cells_around_it():
  """The pooled image itself, read through an identity as the last layer."""
  gh, gw = GRID
  size = 2 * 3 * exit_heads.FILTERS
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


@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_which_tokens_are_read(name):
  head, tokens = _head(name, 2), _tokens(2)
  params = _params(head, tokens)
  batch = np.repeat(tokens[:1], 1 + tokens.shape[1], 0)
  for i in range(tokens.shape[1]):
    batch[1 + i, i] = tokens[1, i]
  out = np.asarray(_apply(head, params, batch))
  read = np.any(np.abs(out[1:] - out[:1]) > 1e-4, -1)
  assert all(read[:2]) == any(read[:2]) == (
      name not in ('cnn_ignore', 'resmlp'))
  assert all(read[2:]) == any(read[2:]) == (name != 'mlp')


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


@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_no_types_or_ranks_are_promoted(name):
  head, tokens = _head(name), _tokens()
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


def _abstract(name, vit, num_outputs):
  head = exit_heads.create(name, vit, num_outputs)
  tokens = jax.ShapeDtypeStruct((1, vit.num_tokens, vit.width), jnp.float32)
  params = jax.eval_shape(head.init, jax.random.key(0), tokens)['params']
  return lambda p, x: head.apply({'params': p}, x), params, tokens


@pytest.mark.parametrize('model', [
    'vit_base_patch16_224', 'deit_tiny_distilled_patch16_224',
    'vit_base_patch32_224'])
@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_macs_are_the_programs_own(name, model):
  vit = models.create(model)
  got = test_cost._products(*_abstract(name, vit, 7))
  assert got == exit_cost.head_macs(name, vit, 7)


@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_xla_counts_the_same_flops(name):
  """But for products with padding, which XLA leaves out, and the LayerNorm.

  A small convolution is so cheap that its LayerNorm is 3 % of it.
  """
  vit = models.create('vit_base_patch16_224')
  function, params, tokens = _abstract(name, vit, 10)
  flops = test_cost._flops(function, params, tokens)
  want = exit_cost.head_macs(name, vit, 10)
  if name.startswith('cnn'):
    flops -= test_cost._flops(
        lambda p, x: nn.LayerNorm(epsilon=1e-6).apply({'params': p}, x),
        params['norm'], tokens)
    want -= (9 * 14 ** 2 - (3 * 14 - 2) ** 2) * 768 * exit_heads.FILTERS
  np.testing.assert_allclose(flops / 2, want, rtol=0.02)


@pytest.mark.parametrize('name, mmacs', [
    ('mlp', 4.7), ('cnn_ignore', 21.7), ('cnn_add', 21.7),
    ('cnn_project', 253), ('vit', 239), ('mlp_mixer', 472), ('resmlp', 954)])
def test_macs_of_the_base_model(name, mmacs):
  vit = models.create('vit_base_patch16_224')
  got = exit_cost.head_macs(name, vit, 10) / 1e6
  assert round(got, 1 if mmacs < 100 else 0) == mmacs


def test_bad_input():
  vit = tiny.model()
  with pytest.raises(ValueError, match="'mlp_mix'.*did you mean 'mlp_mixer'"):
    exit_heads.create('mlp_mix', vit, 4)
  with pytest.raises(ValueError, match="'xyz'.*known: .*'resmlp'"):
    exit_cost.head_macs('xyz', vit, 4)
  with pytest.raises(ValueError, match='num_outputs=0'):
    exit_heads.create('mlp', vit, 0)
  head = exit_heads.create('mlp', vit, 4)
  with pytest.raises(ValueError, match=r'\(1, 4, 16\).* 2 x 2 patches'):
    head.init(jax.random.key(0), jnp.zeros((1, 4, 16)))

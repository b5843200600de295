"""The optimizer against AdamW and Muon written out in NumPy."""

from adavit_jax.train import optimizer
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest


def _config(**changes):
  return ml_collections.ConfigDict(dict(
      optimizer='adamw', learning_rate=0.1, warmup=0.25, end_lr_factor=0.1,
      weight_decay=0.3, clip_norm=1.0, b1=0.9, b2=0.99) | changes)


def _params():
  # Stacked encoders: two layers on the leading axis.
  return {
      'encoder': {
          'kernel': jnp.array([[[0.5, -1.0]], [[2.0, 0.25]]]),  # [L, 1, 2]
          'bias': jnp.array([[0.3, 0.1], [-0.2, 0.4]]),
          'scale': jnp.array([[1.0, 0.9], [1.1, 1.0]]),
      },
      'pos_embedding': jnp.array([[[0.7, -0.6]]]),
      'cls': jnp.array([[[0.2, 0.8]]]),
  }


def _lr(count, steps=8, warmup=2, peak=0.1, end=0.1):
  if count < warmup:
    return peak * count / warmup
  done = (count - warmup) / (steps - warmup)
  return peak * (end + (1 - end) * 0.5 * (1 + np.cos(np.pi * done)))


@pytest.mark.parametrize('clip_norm', [0, 1.0])
def test_three_steps_against_numpy(clip_norm):
  tx, _ = optimizer.make_optimizer(_config(clip_norm=clip_norm), 8)
  params, update = _params(), jax.jit(tx.update)
  state = tx.init(params)
  want = {k: np.asarray(v, np.float64) for k, v in _flat(params).items()}
  mu = {k: np.zeros_like(v) for k, v in want.items()}
  nu = {k: np.zeros_like(v) for k, v in want.items()}
  for t in range(1, 4):
    grads = jax.tree.map(lambda p, t=t: p * t - 0.4, params)
    flat = {k: np.asarray(g, np.float64) for k, g in _flat(grads).items()}
    updates, state = update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)

    norm = np.sqrt(sum((g ** 2).sum() for g in flat.values()))
    assert norm > 1  # Or the clipping would not be tested.
    for k, g in flat.items():
      g = g / norm if clip_norm else g
      mu[k] = 0.9 * mu[k] + 0.1 * g
      nu[k] = 0.99 * nu[k] + 0.01 * g ** 2
      step = (mu[k] / (1 - 0.9 ** t)
              / (np.sqrt(nu[k] / (1 - 0.99 ** t)) + 1e-8))
      if k.endswith('kernel'):
        step = step + 0.3 * want[k]
      want[k] = want[k] - _lr(t - 1) * step
    for k, v in _flat(params).items():
      np.testing.assert_allclose(v, want[k], rtol=1e-5, atol=1e-6, err_msg=k)


def test_muon_orthogonalizes_each_kernel_by_itself():
  """Those of each encoder of a stack; a convolution is one matrix."""
  tx, _ = optimizer.make_optimizer(
      _config(optimizer='muon', warmup=0., clip_norm=0), 8,
      stacks=('encoders',), undecayed=('policy',))
  rng = np.random.default_rng(0)
  shapes = {'encoders': {'fc': {'kernel': (2, 6, 4), 'bias': (2, 4)},
                         'conv': {'kernel': (2, 3, 3, 2, 4)}},
            'stem': {'kernel': (3, 3, 1, 5)},
            'head': {'kernel': (4, 3)},
            'cls': (1, 1, 4)}
  params = jax.tree.map(
      lambda shape: jnp.float32(rng.normal(size=shape)),
      {'backbone': shapes, 'policy': {'conv': {'kernel': (3, 3, 1, 5)}}},
      is_leaf=lambda x: isinstance(x, tuple))
  state, history, update = tx.init(params), [], jax.jit(tx.update)
  for t in (1, 2):
    grads = jax.tree.map(lambda p, t=t: jnp.cos(7 * t * p), params)
    history.append({k: np.asarray(g, np.float64)
                    for k, g in _flat(grads).items()})
    updates, state = update(grads, state, params)
  got = {k: np.asarray(u) for k, u in _flat(updates).items()}
  rate, flat = _lr(1, warmup=0), _flat(params)

  for name, num in (('encoders/fc/kernel', 2), ('encoders/conv/kernel', 2),
                    ('stem/kernel', 1)):
    name = f'backbone/{name}'
    first, second = (h[name] for h in history)
    # The mean of gradients, bias-corrected, with Nesterov's look ahead.
    mean = 0.05 * (0.95 * first + second)
    momentum = (0.95 * mean / (1 - 0.95 ** 3)
                + 0.05 * second / (1 - 0.95 ** 2))
    shape = num, -1, momentum.shape[-1]
    for g, p, u in zip(momentum.reshape(shape),
                       np.asarray(flat[name]).reshape(shape),
                       got[name].reshape(shape)):
      x = g / np.linalg.norm(g)
      for _ in range(5):  # Newton-Schulz, coefficients of Jordan et al.
        b = x @ x.T
        x = 3.4445 * x + (-4.775 * b + 2.0315 * b @ b) @ x
      want = -rate * (0.2 * max(g.shape) ** 0.5 * x + 0.3 * p)
      np.testing.assert_allclose(u, want, atol=2e-4)

  for name in ('backbone/encoders/fc/bias', 'backbone/head/kernel',
               'backbone/cls', 'policy/conv/kernel'):  # Adam, no decay
    first, second = (h[name] for h in history)
    mean = 0.1 * (0.9 * first + second)
    momentum = 0.9 * mean / (1 - 0.9 ** 3) + 0.1 * second / (1 - 0.9 ** 2)
    square = 0.01 * (0.99 * first ** 2 + second ** 2) / (1 - 0.99 ** 2)
    np.testing.assert_allclose(
        got[name], -rate * momentum / np.sqrt(square), rtol=1e-4, atol=1e-6)


def _flat(tree):
  return {jax.tree_util.keystr(p, simple=True, separator='/'): v
          for p, v in jax.tree_util.tree_leaves_with_path(tree)}


def test_decay_mask_goes_by_name():
  mask = _flat(optimizer.decay_mask(_params()))
  assert {k for k, v in mask.items() if v} == {'encoder/kernel'}
  assert len(mask) == 5


def test_schedule():
  _, schedule = optimizer.make_optimizer(_config(), 8)
  got = [float(schedule(i)) for i in range(9)]
  np.testing.assert_allclose(got, [_lr(i) for i in range(9)], rtol=1e-5)
  assert got[0] == 0 and max(got) == got[2]
  np.testing.assert_allclose(got[8], 0.01, rtol=1e-5)


def test_schedule_without_warmup_and_of_one_step():
  schedule = optimizer.make_schedule(_config(warmup=0.), 4)
  np.testing.assert_allclose(
      [float(schedule(i)) for i in (0, 4)], [0.1, 0.01], rtol=1e-5)
  schedule = optimizer.make_schedule(_config(warmup=0.9), 1)
  np.testing.assert_allclose(float(schedule(0)), 0.1, rtol=1e-6)


def test_ema_update():
  ema, params = {'w': jnp.array([1., 2.])}, {'w': jnp.array([3., 6.])}
  out = optimizer.ema_update(ema, params, 0.75)
  np.testing.assert_array_equal(out['w'], [1.5, 3.])
  np.testing.assert_array_equal(ema['w'], [1., 2.])
  assert optimizer.ema_update(ema, params, 0) is params
  # The warm-up: (1 + 2) / (10 + 2) = 0.25 until decay is smaller.
  out = optimizer.ema_update(ema, params, 0.75, step=2)
  np.testing.assert_allclose(out['w'], [2.5, 5.], rtol=1e-6)
  out = optimizer.ema_update(ema, params, 0.75, step=jnp.int32(1000))
  np.testing.assert_allclose(out['w'], [1.5, 3.], rtol=1e-6)
  with pytest.raises(ValueError, match='decay=1'):
    optimizer.ema_update(ema, params, 1.)

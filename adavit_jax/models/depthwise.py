"""Depthwise convolution: one filter for each channel."""

import jax
import jax.numpy as jnp
import numpy as np


def convolve(x, kernel, backend=None):
  """Convolves each channel with its own filter, padded by zeros to equal size.

  On CPU, XLA's own convolution takes several times as long as a loop over the
  taps of the filter, so that only other backends get it.

  Args:
    x: [B, S, S, D].
    kernel: [k, k, 1, D], k odd.
    backend: 'cpu', 'gpu' or 'tpu'; None for the default backend, also if the
      program is exported for another one. Both forms run on all of them.

  Returns:
    [B, S, S, D] in the dtype of x.
  """
  kernel = kernel.astype(x.dtype)
  if (backend or jax.default_backend()) == 'cpu':
    return _by_taps(x, kernel)
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(kernel.shape[0] // 2,) * 2] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[-1])


# The gradient of a loop would keep the pixels that each tap reads.
@jax.custom_vjp
def _by_taps(x, kernel):
  taps = kernel.reshape(-1, kernel.shape[-1])

  def step(y, tap):
    index, weights = tap
    return y + _read_by(padded, index, x.shape) * weights, None

  padded = _padded(x, kernel)
  y, _ = jax.lax.scan(
      step, jnp.zeros(x.shape, jnp.float32), (_indices(kernel), taps))
  return y.astype(x.dtype)


def _forward(x, kernel):
  return _by_taps(x, kernel), (x, kernel)


def _backward(saved, g):
  x, kernel = saved

  def step(_, index):
    products = _read_by(padded, index, x.shape) * g
    return None, products.sum((0, 1, 2), dtype=jnp.float32)

  padded = _padded(x, kernel)
  _, taps = jax.lax.scan(step, None, _indices(kernel))
  # Each pixel is read by the taps in the opposite order.
  return (_by_taps(g, kernel[::-1, ::-1]),
          taps.reshape(kernel.shape).astype(kernel.dtype))


_by_taps.defvjp(_forward, _backward)


def _indices(kernel):
  """Row and column of each tap, [k * k, 2]."""
  return jnp.asarray(np.argwhere(np.ones(kernel.shape[:2])), jnp.int32)


def _padded(x, kernel):
  width = kernel.shape[0] // 2
  return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


def _read_by(padded, index, shape):
  """The pixels [B, S, S, D] that one tap reads for all outputs."""
  return jax.lax.dynamic_slice(padded, (0, index[0], index[1], 0), shape)


def tap_sums(kernel, side):
  """Sums the taps that read pixels, not padding, at each output.

  Args:
    kernel: [k, k, 1, D].
    side: S.

  Returns:
    [S, S, D], what `convolve` answers to ones [1, S, S, D].
  """
  size = kernel.shape[0]
  reads = np.arange(side)[:, None] + np.arange(size) - size // 2
  inside = jnp.float32((reads >= 0) & (reads < side))  # [outputs, taps]
  return jnp.einsum('it,ju,tud->ijd', inside, inside, kernel[:, :, 0],
                    precision='highest')

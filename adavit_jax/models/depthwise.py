"""Depthwise convolution: one filter for each channel."""

import jax
import jax.numpy as jnp
import numpy as np


# The gradient keeps x and the kernel alone; that of a loop over the taps would
# keep the pixels that each of them reads.
@jax.custom_vjp
def convolve(x, kernel):
  """Convolves each channel with its own filter, padded by zeros to equal size.

  On CPU, XLA's own convolution takes several times as long as a loop over the
  taps of the filter, so that only other platforms get it.

  Args:
    x: [B, S, S, D].
    kernel: [k, k, 1, D], k odd.

  Returns:
    [B, S, S, D] in the dtype of x.
  """
  # Chosen when the program is lowered, for the platform that it is for.
  return jax.lax.platform_dependent(x, kernel, cpu=by_taps, default=by_xla)


def by_xla(x, kernel):
  """XLA's convolution; as `convolve`."""
  return jax.lax.conv_general_dilated(
      x, kernel.astype(x.dtype), (1, 1), [(kernel.shape[0] // 2,) * 2] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[-1])


def by_taps(x, kernel):
  """A loop over the taps; as `convolve`."""
  taps = kernel.astype(x.dtype).reshape(-1, kernel.shape[-1])

  def step(y, tap):
    index, weights = tap
    return y + _read_by(padded, index, x.shape) * weights, None

  padded = _padded(x, kernel)
  y, _ = jax.lax.scan(
      step, jnp.zeros(x.shape, jnp.float32), (_indices(kernel), taps))
  return y.astype(x.dtype)


def _forward(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _backward(saved, g):
  return jax.lax.platform_dependent(
      *saved, g, cpu=_backward_by_taps,
      default=lambda x, kernel, g: jax.vjp(by_xla, x, kernel)[1](g))


convolve.defvjp(_forward, _backward)


def _backward_by_taps(x, kernel, g):
  def step(_, index):
    products = _read_by(padded, index, x.shape) * g
    return None, products.sum((0, 1, 2), dtype=jnp.float32)

  padded = _padded(x, kernel)
  _, taps = jax.lax.scan(step, None, _indices(kernel))
  # Each pixel is read by the taps in the opposite order.
  return (by_taps(g, kernel[::-1, ::-1]),
          taps.reshape(kernel.shape).astype(kernel.dtype))


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

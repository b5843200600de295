"""Which MSA and MLP branches of the adaptive encoders run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Actions(NamedTuple):
  """1 = run, 0 = drop, over the L adaptive encoders.

  Other values are gates, which only the mode `masked` knows.

  Attributes:
    msa: [B, L] per image or [L] shared (a1 in US 12,394,190).
    mlp: the same for the MLP branches (a2).
  """
  msa: jax.Array
  mlp: jax.Array

  @property
  def keep(self):
    """Both halves as one vector, [B, 2L] or [2L]: all MSA, then all MLP."""
    xp = np if isinstance(self.msa, np.ndarray) else jnp
    return xp.concatenate([self.msa, self.mlp], axis=-1)

  @property
  def read_later(self):
    """Whether a later encoder keeps its MSA branch, [B, L] or [L] of bool.

    Where it is False, nothing but the heads reads what an encoder gives.
    """
    xp = np if isinstance(self.msa, np.ndarray) else jnp
    kept = self.msa.astype(bool).astype(np.int32)
    from_here = xp.cumsum(kept[..., ::-1], axis=-1)[..., ::-1]
    return from_here > kept

  @classmethod
  def from_keep(cls, keep):
    """The inverse of `keep`."""
    length = keep.shape[-1] // 2
    return cls(keep[..., :length], keep[..., length:])


def checked(actions, batch_size, num_layers, *, gates):
  """Actions as arrays that fit.

  Args:
    actions: `Actions` of anything like arrays.
    batch_size: B; None where one decision must hold for all images.
    num_layers: L.
    gates: whether other numbers than 0 and 1 make sense; those of a traced
      array are not known.

  Returns:
    `Actions` of NumPy or JAX arrays [L] or [B, L].

  Raises:
    ValueError: for other shapes, what are no numbers, and gates where they make
      no sense.
  """
  actions = Actions(*(a if isinstance(a, jax.Array) else np.asarray(a)
                      for a in actions))
  shapes = tuple(a.shape for a in actions)
  fit = [(num_layers,)]
  if batch_size is not None:
    fit.append((batch_size, num_layers))
  if shapes not in [(shape, shape) for shape in fit]:
    images = '' if batch_size is None else f' and {batch_size} images'
    raise ValueError(
        f'actions have shapes {shapes[0]} and {shapes[1]}; with {num_layers} '
        f'adaptive encoders{images} give both as '
        f'{" or as ".join(map(str, fit))}')
  for a in actions:
    if not any(jnp.issubdtype(a.dtype, kind)
               for kind in (jnp.floating, jnp.integer, np.bool_)):
      raise ValueError(f'actions are {a.dtype}; give numbers, 0 or 1')
    if not gates and not isinstance(a, jax.core.Tracer):
      wrong = np.asarray(a)[~np.isin(a, (0, 1))]
      if wrong.size:
        raise ValueError(f'an action is {wrong[0]}, but this mode runs a layer '
                         f"or does not; give 0 and 1, or for gates "
                         f"mode='masked'")
  return actions

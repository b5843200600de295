"""Which MSA and MLP branches of the droppable encoders run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Actions(NamedTuple):
  """1 = run, 0 = drop, over the layers behind the place of the policy.

  Other values are gates, which only the mode `masked` knows. A model has L1
  MSA and L2 MLP layers that may be dropped, in the order of its plan.

  Attributes:
    msa: [B, L1] per image or [L1] shared (a1 in US 12,394,190).
    mlp: [B, L2] or [L2] likewise (a2).
  """
  msa: jax.Array
  mlp: jax.Array

  @property
  def keep(self):
    """Both halves as one vector, [..., L1 + L2]: all MSA, then all MLP."""
    xp = np if isinstance(self.msa, np.ndarray) else jnp
    return xp.concatenate([self.msa, self.mlp], axis=-1)

  @classmethod
  def from_keep(cls, keep, num_layers):
    """The inverse of `keep`; num_layers is (L1, L2)."""
    return cls(keep[..., :num_layers[0]], keep[..., num_layers[0]:])

  @property
  def num_kept(self):
    """How many layers run, [...]."""
    return self.msa.sum(-1) + self.mlp.sum(-1)


def checked(actions, batch_size, num_layers, *, gates):
  """Actions as arrays that fit.

  Args:
    actions: `Actions` of array-likes.
    batch_size: B; None where one decision must hold for all images.
    num_layers: (L1, L2).
    gates: whether other values than 0 and 1 are allowed; those of a traced
      array are not known.

  Returns:
    `Actions` of NumPy or JAX arrays [L1], [L2] or [B, L1], [B, L2].

  Raises:
    ValueError: for other shapes, non-numeric values, or values other than 0
      and 1 unless gates=True.
  """
  actions = Actions(*(a if isinstance(a, jax.Array) else np.asarray(a)
                      for a in actions))
  shapes = tuple(a.shape for a in actions)
  fit = [tuple((num,) for num in num_layers)]
  if batch_size is not None:
    fit.append(tuple((batch_size, num) for num in num_layers))
  if shapes not in fit:
    images = '' if batch_size is None else f' and {batch_size} images'
    raise ValueError(
        f'actions have shapes {shapes[0]} and {shapes[1]}; with '
        f'{num_layers[0]} MSA and {num_layers[1]} MLP layers to drop{images} '
        f'give {" or ".join(f"{a} and {b}" for a, b in fit)}')
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

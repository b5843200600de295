"""Actions: which droppable MSA and MLP layers run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Actions(NamedTuple):
  """1 = run, 0 = drop, for each droppable layer after the policy's place.

  Other values are gates, supported by the mode `masked` only. A model has L1
  droppable MSA layers and L2 droppable MLP layers, in the order of its plan.

  Attributes:
    msa: [B, L1] per image or [L1] shared (a1 in US 12,394,190).
    mlp: [B, L2] per image or [L2] shared (a2 in US 12,394,190).
  """
  msa: jax.Array
  mlp: jax.Array

  @property
  def keep(self):
    """Both concatenated, [..., L1 + L2]: all MSA, then all MLP."""
    xp = np if isinstance(self.msa, np.ndarray) else jnp
    return xp.concatenate([self.msa, self.mlp], axis=-1)

  @classmethod
  def from_keep(cls, keep, num_layers):
    """The inverse of `keep`; num_layers is (L1, L2)."""
    return cls(keep[..., :num_layers[0]], keep[..., num_layers[0]:])

  @property
  def num_kept(self):
    """Number of layers that run, [...]."""
    return self.msa.sum(-1) + self.mlp.sum(-1)


def checked(actions, batch_size, num_layers, *, gates):
  """Converts actions to arrays and checks them.

  Args:
    actions: `Actions` of array-likes.
    batch_size: B; None if all images must share the actions.
    num_layers: (L1, L2).
    gates: whether values other than 0 and 1 are allowed; values of traced
      arrays are not checked.

  Returns:
    `Actions` of NumPy or JAX arrays [L1], [L2] or [B, L1], [B, L2].

  Raises:
    ValueError: for other shapes, non-numeric values, or values other than 0
      and 1 unless gates=True.
  """
  actions = Actions(*(a if isinstance(a, jax.Array) else np.asarray(a)
                      for a in actions))
  shapes = tuple(a.shape for a in actions)
  allowed = [tuple((num,) for num in num_layers)]
  if batch_size is not None:
    allowed.append(tuple((batch_size, num) for num in num_layers))
  if shapes not in allowed:
    images = '' if batch_size is None else f' and {batch_size} images'
    raise ValueError(
        f'actions have shapes {shapes[0]} and {shapes[1]}; with '
        f'{num_layers[0]} droppable MSA and {num_layers[1]} MLP layers{images} '
        f'give {" or ".join(f"{a} and {b}" for a, b in allowed)}')
  for a in actions:
    if not any(jnp.issubdtype(a.dtype, kind)
               for kind in (jnp.floating, jnp.integer, np.bool_)):
      raise ValueError(f'actions are {a.dtype}; give numeric values, 0 or 1')
    if not gates and not isinstance(a, jax.core.Tracer):
      wrong = np.asarray(a)[~np.isin(a, (0, 1))]
      if wrong.size:
        raise ValueError(f'an action is {wrong[0]}, but this mode only takes 0 '
                         f"and 1; give those, or mode='masked' for gates")
  return actions

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

  @classmethod
  def from_keep(cls, keep):
    """The inverse of `keep`."""
    length = keep.shape[-1] // 2
    return cls(keep[..., :length], keep[..., length:])

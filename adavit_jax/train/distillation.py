"""A teacher that is another model, which sees the images of its student.

The dense teacher, `State.teacher`, is the model before its policy phases.
"""

import dataclasses

import jax
import jax.numpy as jnp

from adavit_jax import models
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import modes


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """Another model, in evaluation mode. Its parameters are passed to it.

  Attributes:
    model: a `Backbone`; only its last exit is used.
    mean: per-channel mean of its images, for pixels in [0, 1].
    std: per-channel standard deviation, likewise.
    actions: `Actions` [L1], [L2], the layers that it runs; None for all.
  """
  model: models.Backbone
  mean: tuple[float, ...]
  std: tuple[float, ...]
  actions: Actions | None = None

  def logits(self, params, images, mean, std):
    """Returns the teacher's logits of its student's images, without gradient.

    Args:
      params: groups of the teacher, folded.
      images: [B, S, S, C], augmented, normalized with `mean` and `std`.
      mean: per-channel mean that the student uses.
      std: per-channel standard deviation that the student uses.

    Returns:
      [B, K] float32.
    """
    if (mean, std) != (self.mean, self.std):
      # Mixed images too, since their weights sum to 1.
      mean, std, own_mean, own_std = (
          jnp.asarray(x, jnp.float32)
          for x in (mean, std, self.mean, self.std))
      images = (images * std + (mean - own_mean)) / own_std
    logits = modes.forward(self.model, params, images, self.actions)
    return jax.lax.stop_gradient(logits.total)

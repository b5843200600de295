"""What a model is trained for: classes or a number, behind one interface.

Losses take outputs as the model gives them. Everything that decides or
measures takes `denormalize`d ones: for regression they are in the target's
unit. All results are float32, except that classes are integers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from adavit_jax.train import losses


@dataclasses.dataclass(frozen=True)
class Classification:
  """One of K classes; outputs are logits, the score is 1 where right."""
  num_classes: int

  @property
  def num_outputs(self):
    """K."""
    return self.num_classes

  def loss(self, outputs, targets):
    """Cross-entropy: logits [..., B, K], distributions [B, K] to []."""
    return losses.cross_entropy(_float(outputs), targets)

  def loss_of_labels(self, outputs, labels):
    """Cross-entropy of each image: logits [..., B, K], [B] to [..., B]."""
    log_p = jax.nn.log_softmax(_float(outputs))
    labels = jnp.broadcast_to(labels, log_p.shape[:-1])
    return -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]

  def denormalize(self, outputs):
    """Logits have no unit: returns them as they are."""
    return outputs

  def predict(self, outputs):
    """The likeliest class: logits [..., K] to int32 [...]."""
    return outputs.argmax(-1).astype(jnp.int32)

  def score(self, prediction, labels):
    """1 where the class is right, else 0: [..., B] and [B] to [..., B]."""
    return _float(prediction == labels)

  def metrics(self, score):
    """The accuracy over the images, [..., n] to [...], of its own dtype."""
    return dict(accuracy=score.mean(-1))


@dataclasses.dataclass(frozen=True)
class Regression:
  """A number; the score is minus the absolute error in the target's unit.

  Attributes:
    mean: what a normalised output of 0 stands for.
    std: what a difference of 1 stands for.
    unit: of both.

  Raises:
    ValueError: std is not positive.
  """
  mean: float
  std: float
  unit: str

  def __post_init__(self):
    if not self.std > 0:
      raise ValueError(
          f'target.std={self.std} must be positive: labels that are all the '
          f'same leave nothing to learn')

  @property
  def num_outputs(self):
    """1."""
    return 1

  def loss(self, outputs, targets):
    """Mean squared error: [..., B, 1] and [B, 1], both normalised, to []."""
    return ((_float(outputs) - targets)**2).mean()

  def loss_of_labels(self, outputs, labels):
    """Squared error of each image, in normalised units.

    Args:
      outputs: [..., B, 1], normalised.
      labels: [B], in the target's unit.

    Returns:
      [..., B].
    """
    targets = (_float(labels) - self.mean) / self.std
    return (_float(outputs)[..., 0] - targets)**2

  def denormalize(self, outputs):
    """Outputs in the target's unit, [..., 1] to [..., 1]."""
    return _float(outputs) * self.std + self.mean

  def predict(self, outputs):
    """The number, of outputs in the target's unit: [..., 1] to [...]."""
    return _float(outputs)[..., 0]

  def score(self, prediction, labels):
    """Minus the absolute error: [..., B] and [B] to [..., B]."""
    return -jnp.abs(_float(prediction) - labels)

  def metrics(self, score):
    """Mean absolute and root mean squared error, as in `Classification`."""
    return dict(mae=-score.mean(-1), rmse=(score**2).mean(-1)**0.5)


def create(dataset):
  """The task of a data set.

  Args:
    dataset: a `data.Dataset`; num_classes and target are used.

  Raises:
    ValueError: the target's deviation is not positive.
  """
  if dataset.target is None:
    return Classification(dataset.num_classes)
  return Regression(*dataset.target)


def _float(x):
  return jnp.asarray(x, jnp.float32)

"""Classification and regression behind one interface.

Losses take the raw outputs of the model. Predictions and metrics take
`denormalize`d outputs: for regression they are in the target's unit. All
results are float32, except that classes are integers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from adavit_jax.train import losses


@dataclasses.dataclass(frozen=True)
class Classification:
  """Predicts one of K classes; outputs are logits, the score is 0 or 1."""
  num_classes: int

  @property
  def num_outputs(self):
    """K, the number of classes."""
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
    """Returns the logits unchanged, since they have no unit."""
    return outputs

  def predict(self, outputs):
    """The most likely class: logits [..., K] to int32 [...]."""
    return outputs.argmax(-1).astype(jnp.int32)

  def score(self, prediction, labels):
    """1 if the class is correct, else 0: [..., B] and [B] to [..., B]."""
    return _float(prediction == labels)

  def metrics(self, score):
    """The accuracy over the images, [..., n] to [...], in the score's dtype."""
    return dict(accuracy=score.mean(-1))


@dataclasses.dataclass(frozen=True)
class Regression:
  """Predicts a number; the score is minus the absolute error, in its unit.

  Attributes:
    mean: mean of the target; a normalized output of 0 means this value.
    std: standard deviation of the target.
    unit: the unit of both.

  Raises:
    ValueError: if std is not positive, or there is no unit.
  """
  mean: float
  std: float
  unit: str

  def __post_init__(self):
    if not self.std > 0:
      raise ValueError(
          f'target.std={self.std} must be positive; give labels that are not '
          f'all equal')
    if not self.unit:
      raise ValueError(
          f'target.unit={self.unit!r} is empty; give one, such as "units", for '
          f'labels without a unit')

  @property
  def num_outputs(self):
    """1, the predicted number."""
    return 1

  def loss(self, outputs, targets):
    """Mean squared error: [..., B, 1] and [B, 1], both normalized, to []."""
    return ((_float(outputs) - targets)**2).mean()

  def loss_of_labels(self, outputs, labels):
    """Squared error of each image, in normalized units.

    Args:
      outputs: [..., B, 1], normalized.
      labels: [B], in the target's unit.

    Returns:
      [..., B].
    """
    targets = (_float(labels) - self.mean) / self.std
    return (_float(outputs)[..., 0] - targets)**2

  def denormalize(self, outputs):
    """Converts outputs to the target's unit, [..., 1] to [..., 1]."""
    return _float(outputs) * self.std + self.mean

  def predict(self, outputs):
    """The predicted number: outputs in the target's unit [..., 1] to [...]."""
    return _float(outputs)[..., 0]

  def score(self, prediction, labels):
    """Minus the absolute error: [..., B] and [B] to [..., B]."""
    return -jnp.abs(_float(prediction) - labels)

  def metrics(self, score):
    """Mean absolute error and root mean squared error, [..., n] to [...]."""
    return dict(mae=-score.mean(-1), rmse=(score**2).mean(-1)**0.5)


def create(dataset):
  """Returns the task of a data set.

  Args:
    dataset: a `data.Dataset`; num_classes and target are used.

  Raises:
    ValueError: if the target's standard deviation is not positive.
  """
  if dataset.target is None:
    return Classification(dataset.num_classes)
  return Regression(*dataset.target)


def _float(x):
  return jnp.asarray(x, jnp.float32)

"""Errors that a user can fix; metrics that are NaN or infinite."""

import numpy as np


class NonFiniteError(FloatingPointError):
  """A metric became NaN or infinite.

  Attributes:
    step: the step of the metric.
    name: the metric's name.
    value: its value, a float or an array.
  """

  def __init__(self, step: int, name: str, value):
    self.step, self.name, self.value = step, name, value
    super().__init__(
        f'step {step}: {name}={value} is not finite. In a new --workdir (with '
        '--config.init.workdir to keep finished phases), try in this order: a '
        "lower learning_rate, a longer warmup, clip_norm=1.0, dtype='float32'")


# Errors that a user can fix: scripts print their message alone. Other errors,
# such as a lost connection, keep their traceback.
USER_ERRORS = (ValueError, NonFiniteError, FileNotFoundError, FileExistsError,
               NotADirectoryError, IsADirectoryError, PermissionError)


def check_finite(step: int, metrics) -> None:
  """Checks the metrics of a step.

  Args:
    step: the step of the metrics.
    metrics: dict of floats and arrays of any shape, on the host.

  Raises:
    NonFiniteError: if a metric has a NaN or an infinite value.
  """
  for name, value in metrics.items():
    # Every finite bfloat16 and every int stays finite in float64.
    if not np.all(np.isfinite(np.asarray(value, np.float64))):
      raise NonFiniteError(step, name, value)

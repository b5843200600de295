"""Stops a run whose numbers are no longer numbers."""

import numpy as np


class NonFiniteError(FloatingPointError):
  """A metric became NaN or infinite.

  Attributes:
    step: the step at which it was seen.
    name: the metric's name.
    value: its value, a float or an array.
  """

  def __init__(self, step: int, name: str, value):
    self.step, self.name, self.value = step, name, value
    super().__init__(
        f'step {step}: {name}={value} is not finite. In a new --workdir '
        '(--config.init.workdir keeps finished phases) try, in this order: a '
        "lower learning_rate, a longer warmup, clip_norm=1.0, dtype='float32'")


# What a user can mend: scripts end with one sentence. Other faults of the
# system, a lost connection for one, keep their traceback.
USER_ERRORS = (ValueError, NonFiniteError, FileNotFoundError, FileExistsError,
               NotADirectoryError, IsADirectoryError, PermissionError)


def check_finite(step: int, metrics) -> None:
  """Checks the metrics of a step.

  Args:
    step: the step they belong to.
    metrics: dict of floats and arrays of any shape, on the host.

  Raises:
    NonFiniteError: one of them has a NaN or an infinity.
  """
  for name, value in metrics.items():
    # float64 keeps every value finite that bfloat16 or an int can hold.
    if not np.all(np.isfinite(np.asarray(value, np.float64))):
      raise NonFiniteError(step, name, value)

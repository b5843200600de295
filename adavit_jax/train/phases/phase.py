"""What there is to say of a phase of training."""

from collections.abc import Callable
import dataclasses
from typing import Any

# What every phase's optimizer takes, see `optimizer.make_optimizer`; `ema` is
# the decay of averaged parameters, 0 for none.
OPTIMIZER = dict(
    optimizer='adamw', steps=1000, batch_size=128, learning_rate=1e-3,
    warmup=0.05, end_lr_factor=0.01, weight_decay=0.05, clip_norm=1.0, b1=0.9,
    b2=0.999, ema=0.0)


@dataclasses.dataclass(frozen=True)
class Phase:
  """A phase, as its module declares it.

  Attributes:
    loss: (system, params, state, batch, key, done) -> (loss [], (metrics,
      updates)). params are all groups of parameters, batch a `Batch`, done the
      steps of the phase so far; updates are new values of `State` fields, of
      `params` those groups alone that no gradient trains.
    trains: groups of parameters with a gradient.
    defaults: fields of its config.
    ranges: of these fields, see `ranges`.
    teacher: whether it learns from the dense model too and needs one true class
      an image: nothing is mixed then.
    from_scratch: whether it can begin with new parameters.
    exits: whether its exits are what it is judged by, and not the last exit
      under actions.
    decides: who chooses the layers after it: 'all' of them run, a 'mask', the
      'policy', or '' for whoever did before.
    check: (system) -> None; raises a ValueError for what does not fit.
    rounds: (system) -> parts of the phase, each with an optimizer and a
      schedule of its own.
    undecayed: groups of those it trains that have no weight decay.
    adjust: (system, changes of the parameters, done) -> changes.
  """
  loss: Callable[..., Any]
  trains: tuple[str, ...]
  defaults: dict[str, Any]
  ranges: dict[str, Any] = dataclasses.field(default_factory=dict)
  teacher: bool = False
  from_scratch: bool = False
  exits: bool = False
  decides: str = ''
  check: Callable[..., None] = lambda system: None
  rounds: Callable[..., int] = lambda system: 1
  undecayed: tuple[str, ...] = ()
  adjust: Callable[..., Any] = lambda system, changes, done: changes


def choice(name, value, known):
  """Raises a ValueError unless `value` is one of those known."""
  if value not in known:
    raise ValueError(f'{name}={value!r}; known: {list(known)}')

"""The interface of a training phase."""

from collections.abc import Callable
import dataclasses
from typing import Any

# Defaults of every phase, see `optimizer.make_optimizer`; `ema` is the decay of
# averaged parameters, 0 for none; `accumulate` is the number of parts in which
# a batch is computed, see `train.accumulate`.
OPTIMIZER = dict(
    optimizer='adamw', steps=1000, batch_size=128, learning_rate=1e-3,
    warmup=0.05, end_lr_factor=0.01, weight_decay=0.05, clip_norm=1.0, b1=0.9,
    b2=0.999, ema=0.0, accumulate=1)


@dataclasses.dataclass(frozen=True)
class Phase:
  """A training phase, as its module declares it.

  Attributes:
    loss: (system, params, state, batch, key, done) -> (loss [], (metrics,
      updates)). params are all groups of parameters, batch is a `Batch`, done
      counts the steps of the phase so far; updates are new values of `State`
      fields, and for `params` only of groups without gradient. `shift` [] is
      added to all logits of the policy after the optimizer's update.
    trains: groups of parameters with a gradient.
    mean: whether a batch can be computed in parts: the loss is a mean over
      images that do not depend on each other, and so are updates and metrics
      that are floats, but for `rmse`, of which the parts' mean is logged;
      integers do not depend on the images.
    reads: (system, params, images) -> pytree of arrays [B, ...], all that the
      loss needs of a frozen model; it is given as `Batch.read`. The config of
      such a phase has the field `views`, see `classifier_wise`.
    defaults: fields of its config.
    ranges: ranges of these fields, see `ranges`.
    teacher: whether the phase also uses the dense model and one true class per
      image; images are not mixed then.
    taught: whether the phase can learn from `Batch.taught`, the logits of
      `config.teacher`; its config has the fields of `losses.supervised`.
    from_scratch: whether the phase can start from new parameters.
    exits: whether validation measures all exits, not the last exit under
      actions.
    decides: how layers are chosen after the phase: 'all' run, a 'mask', the
      'policy', or '' to keep the previous choice.
    check: (system) -> None; raises a ValueError if the phase does not fit.
    rounds: (system) -> number of rounds, each with a separate optimizer state
      and schedule.
    undecayed: trained groups without weight decay.
    adjust: (system, updates of the parameters, done) -> updates.
  """
  loss: Callable[..., Any]
  trains: tuple[str, ...]
  defaults: dict[str, Any]
  ranges: dict[str, Any] = dataclasses.field(default_factory=dict)
  mean: bool = False
  reads: Callable[..., Any] | None = None
  teacher: bool = False
  taught: bool = False
  from_scratch: bool = False
  exits: bool = False
  decides: str = ''
  check: Callable[..., None] = lambda system: None
  rounds: Callable[..., int] = lambda system: 1
  undecayed: tuple[str, ...] = ()
  adjust: Callable[..., Any] = lambda system, changes, done: changes


def choice(name, value, known):
  """Raises a ValueError unless `value` is one of `known`."""
  if value not in known:
    raise ValueError(f'{name}={value!r}; known: {list(known)}')

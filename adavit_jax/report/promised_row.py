"""Thresholds of a run with a promise, from its held-out images."""

import json
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from adavit_jax import paths
from adavit_jax.evaluation import evaluator
from adavit_jax.inference import safe_thresholds
from adavit_jax.policies import knob as knob_lib
from adavit_jax.promise import promises
from adavit_jax.promise import recorded as recorded_lib
from adavit_jax.promise import request
from adavit_jax.promise import risks


class Wanted(NamedTuple):
  """What a promise should say, see `adavit_jax.calibrate`.

  Attributes:
    risk: the largest expected loss.
    confidence: in (0, 1).
    kind: loss of an image, or None.
    bound: the largest loss that is counted, for a regression, or None.
  """
  risk: float
  confidence: float = 0.95
  kind: str | None = None
  bound: float | None = None


def check(trainer, phase, wanted):
  """Raises a ValueError if `wanted` makes no sense, before any image is run.

  Args:
    trainer: `loop.Trainer` of a run with exits or a policy.
    phase: of its checkpoint.
    wanted: `Wanted`.
  """
  _asked(trainer, phase, wanted)


def of_exits(trainer, params, phase, wanted):
  """Finds thresholds of exits, and of the policy if there is one.

  Args:
    trainer: `loop.Trainer`.
    params: groups.
    phase: the layers are chosen as at the end of this phase.
    wanted: `Wanted`.

  Returns:
    (fields of a row: promise, the policy's number and test_loss, the mean
    loss of the test images; `ExitOutputs` of the test images).

  Raises:
    ValueError: if no promise can be made.
  """
  system, data = trainer.system, trainer.dataset
  knob, policy, places, loss = _asked(trainer, phase, wanted)

  def run(split, thresholds):
    outputs = [trainer.exit_evaluator(
        phase, params if t is None else dict(params, threshold=np.float32(t)),
        split) for t in thresholds]
    full = (trainer.evaluator.dense(params, split).prediction if knob
            else outputs[0].prediction[-1])
    stacked = [np.stack([getattr(x, name) for x in outputs])
               for name in ('prediction', 'confidence', 'macs')]
    return outputs[0], recorded_lib.Recorded(
        knob and knob.name, thresholds, system.config.exits.rule, *stacked,
        full, system.after(phase).full_macs)

  promise = _make(trainer, run(data.holdout, policy)[1], places, loss, wanted)
  outputs, recorded = run(data.test, (promise.number,))
  return _fields(promise, loss, recorded, data.test), outputs


def of_policy(trainer, params, wanted):
  """Finds a number of a policy.

  Args:
    trainer: `loop.Trainer` of a run without exits.
    params: groups, with the policy's.
    wanted: `Wanted`.

  Returns:
    (fields as in `of_exits`, `Outputs` of the test images).

  Raises:
    ValueError: if no promise can be made.
  """
  system, data = trainer.system, trainer.dataset
  knob, policy, places, loss = _asked(trainer, None, wanted)

  def run(split, numbers):
    full = trainer.evaluator.dense(params, split)
    # The first number stands for all layers.
    outputs = [full if number is policy[0] else trainer.evaluator.adaptive(
        params, split, knob=number) for number in numbers]
    columns = [np.stack(x)[:, None] for x in (
        [x.prediction for x in outputs], [x.loss for x in outputs],
        [system.cost.adaptive(x.actions) for x in outputs])]
    return outputs[0], recorded_lib.Recorded(
        knob.name, numbers, None, *columns, full.prediction,
        system.plain_cost.dense)

  promise = _make(trainer, run(data.holdout, policy)[1], places, loss, wanted)
  chosen = promise.number if promise.passed else policy[0]
  outputs, recorded = run(data.test, (chosen,))
  return _fields(promise, loss, recorded, data.test), outputs


def _asked(trainer, phase, wanted):
  """Returns (knob, numbers of the policy, places of the images, `Loss`)."""
  system = trainer.system
  if system.staged:
    knob, num_exits = safe_thresholds.of_exits(system, phase), system.num_exits
    masks = system.after(phase).decider != 'all'
  else:
    knob, num_exits, masks = knob_lib.KNOBS[system.nets.decide], 1, True
  policy = safe_thresholds.numbers(knob, num_exits)
  places = _unused(trainer, masks)
  return knob, policy, places, _loss(
      system, len(places), wanted, (len(policy), num_exits))


def _unused(trainer, masks):
  """Indices of the held-out images that no training has read.

  Args:
    trainer: `loop.Trainer`.
    masks: whether training chose static masks on `num_search` of the images.
  """
  holdout = trainer.dataset.holdout
  used = evaluator.evenly(holdout, trainer.config.num_search) if masks else []
  return np.setdiff1d(np.arange(len(holdout)), used)


def _loss(system, num, wanted, shape):
  """Returns the `Loss`; raises a ValueError before any image is run."""
  loss = risks.create(wanted.kind, target=system.target, bound=wanted.bound)
  request.check_range(wanted.risk, wanted.confidence, loss)
  try:
    rule = system.config.exits.rule if system.staged else None
    request.check_number(
        num, shape, rule, loss, wanted.risk, wanted.confidence)
  except ValueError as error:
    raise ValueError(
        f'--risk={wanted.risk}: {error}. These are the held-out images '
        f'(config.data.holdout), of a run with a policy without those on which '
        f'training chose its masks (config.num_search); or call '
        f'adavit_jax.calibrate with images of your own') from error
  return loss


def _make(trainer, recorded, places, loss, wanted):
  system = trainer.system
  return promises.make(
      recorded.take(places), wanted.risk, wanted.confidence, loss,
      labels=trainer.dataset.holdout.labels[places],
      num_classes=None if system.target else system.model.num_classes,
      seed=trainer.config.seed)


def _fields(promise, loss, recorded, test):
  exits = promise.thresholds or ()
  prediction, _ = recorded.outcome(
      recorded_lib.Setting(0, np.asarray(exits, np.float64)))
  result: dict[str, Any] = dict(
      promise=promise.as_dict(), test_loss=float(
          loss.of(prediction, recorded.full, test.labels).mean()))
  if promise.number is not None:
    result[promise.knob] = promise.number
  return result


def read(workdir, saved, best=False):
  """Reads the promise that eval.py has written for a checkpoint.

  Args:
    workdir: directory of the run.
    saved: `saved_run.Saved`, the checkpoint.
    best: whether it is the best of its phase.

  Returns:
    `Promise`.

  Raises:
    ValueError: if report.json is damaged or has no promise, or that of another
      checkpoint.
  """
  path = epath.Path(paths.expanded(workdir, 'workdir')) / 'report.json'
  try:
    report = json.loads(path.read_text()) if path.exists() else {}
  except ValueError as error:
    raise ValueError(f'{path} is damaged ({error}); run eval.py again'
                     ) from error
  if 'promised' not in report:
    raise ValueError(f'{path} has no thresholds with a promise; run python '
                     f'eval.py --workdir={workdir} --risk=0.01')
  of = report['phase'], report['step'], report['best'], report['attributes']
  this = saved.info['phase'], saved.step, best, {}
  if of != this:
    raise ValueError(f'the promise in {path} is of the checkpoint {of} (phase, '
                     f'step, best, attributes of the model), not of {this}; '
                     f'run eval.py again')
  return promises.Promise.from_dict(report['promised']['promise'])


def show(row, page):
  """Adds the promise of a row, and what the test images say, to a page."""
  promise = promises.Promise.from_dict(row['promise'])
  unit = promise.unit and f' {promise.unit}'
  number = (lambda x: f'{x:.3g}{unit}') if unit else lambda x: f'{x:.2%}'
  page.text(
      f"{promise}.\nrisk {number(promise.risk)} ({promise.kind}), confidence "
      f"{promise.confidence:g}, upper limit {number(promise.limit)}, "
      f"{promise.num_images} held-out images; test images: "
      f"{number(row['test_loss'])}")

"""Report of a model with exits: each one alone, and the cascade."""

from absl import logging
from etils import epath
import jax
import numpy as np

from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence
from adavit_jax.report import pictures
from adavit_jax.report import table
from adavit_jax.train import restore
from adavit_jax.train import system as system_lib

_COLUMNS = (
    table.ACCURACY,
    table.MACS,
    ('of last', lambda r: f"{r['macs_ratio']:.3f}"),
    ('MFLOPs, paper', lambda r: f"{r['paper_flops'] / 1e6:.2f}"),
    ('left at each exit %', lambda r: ' '.join(
        f'{100 * s:.1f}' for s in r['shares'])),
)
_TARGETS = (('same_accuracy', 'cascade, same accuracy'),
            ('mac_target', 'cascade, mac_target'),
            ('threshold', 'cascade, threshold given'))


def evaluate(trainer, about, *, threshold=None, best=False):
  """Evaluates a run on the test split; prints a table and draws a picture.

  Thresholds are calibrated on held-out images, for the accuracy of the last
  exit and for the config's `mac_target` of its MACs; a target that cannot be
  met is left out.

  Args:
    trainer: `loop.Trainer` of the run, its system a `StagedSystem`.
    about: dict of what a report says of a run, 'workdir' among it.
    threshold: of every exit's confidence, to use instead of calibrated ones.
    best: the best checkpoint instead of the last.

  Returns:
    `about` with exits (a row for each alone), same_accuracy, mac_target or
    threshold (a row each), and curve: rows of rising MACs. A row has accuracy,
    macs, macs_ratio (of the last exit's MACs), paper_flops, shares [E] and,
    for a cascade, thresholds [E - 1].

  Raises:
    ValueError: if no images were held out and no threshold is given, a
      threshold is given for a single exit, or the run is of another model.
  """
  system, workdir = trainer.system, about['workdir']
  num_exits, holdout = system.model.num_stages, trainer.dataset.holdout
  calibrated = threshold is None and num_exits > 1
  if (system.config.exits.rule == 'entropy' and threshold is not None
      and 0 < threshold < confidence.NEVER):
    raise ValueError(f'--threshold={threshold}: the confidence is the negated '
                     f'entropy, give {-threshold} for an entropy of {threshold}')
  if threshold is not None and num_exits == 1:
    raise ValueError(f'--threshold={threshold} has no use: the model in '
                     f'{workdir} has a single exit; leave it out')
  if calibrated and not len(holdout):
    raise ValueError('no images were held out to calibrate thresholds on; give '
                     '--threshold, or train with --config.data.holdout=0.1')
  vit = system_lib.final_params(restore.state(
      system, trainer.mesh, workdir, best=best))['vit']
  test = trainer.evaluator(vit, trainer.dataset.test)
  result = dict(about, exits=[
      _row(system, test.correct[i].mean(), np.eye(num_exits)[i])
      for i in range(num_exits)])
  if threshold is not None:
    result['threshold'] = _cascade(system, test, threshold)
  if calibrated:
    held = trainer.evaluator(vit, holdout)
    images = held.confidence, held.correct, system.cost.stages
    limit = trainer.config.mac_target * system.cost.dense
    for name, target in (('same_accuracy', dict(same_accuracy=True)),
                         ('mac_target', dict(max_macs=limit))):
      try:
        found = calibrate.calibrate(*images, **target)
      except ValueError as error:
        logging.warning('no row %s: %s', name, error)
      else:
        result[name] = _cascade(system, test, found.thresholds)
    # Calibrated on held-out images, where the order of the MACs can be another.
    result['curve'] = sorted(
        (_cascade(system, test, point['thresholds'])
         for point in calibrate.curve(*images)), key=lambda row: row['macs'])
  if jax.process_index() == 0:
    _show(result)
    pictures.exits(result, epath.Path(workdir) / 'exits.png')
  return result


def _cascade(system, outputs, thresholds):
  found = calibrate.evaluate(
      outputs.confidence, outputs.correct, system.cost.stages, thresholds)
  row = _row(system, found.accuracy, found.shares)
  return dict(row, thresholds=found.thresholds.tolist())


def _row(system, accuracy, shares):
  macs = system.cost.mean(shares)
  return dict(
      accuracy=float(accuracy), macs=macs, macs_ratio=macs / system.cost.dense,
      paper_flops=2 * system.paper_cost.mean(shares),
      shares=np.asarray(shares).tolist())


def _show(result):
  print(f"\n{result['num_test']} test images, seed {result['seed']}, "
        f"{result['device']}\n")
  rows = [(f'exit {i} alone', row) for i, row in enumerate(result['exits'])]
  cascades = [(label, result[key]) for key, label in _TARGETS if key in result]
  print(table.format_rows(rows + cascades, _COLUMNS))
  for label, row in cascades:
    print(f'\nthresholds of the {label}: '
          + ' '.join(f'{t:.5g}' for t in row['thresholds']))

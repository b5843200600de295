"""Report on a model with exits: each exit alone, and the cascade."""

from absl import logging
from etils import epath
import jax
import numpy as np

from adavit_jax import cost
from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence
from adavit_jax.exits import cross_validation
from adavit_jax.report import page as page_lib
from adavit_jax.report import pictures
from adavit_jax.report import promised_row
from adavit_jax.report import table
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib

_TARGETS = (('same_accuracy', 'cascade, same accuracy'),
            ('slack', 'cascade, slack'),
            ('mac_target', 'cascade, mac_target'),
            ('threshold', 'cascade, threshold given'),
            ('promised', 'cascade, promised risk'))
_DROPS = {'all': '', 'mask': ', a mask drops layers',
          'policy': ', a policy drops layers'}


def evaluate(trainer, state, metadata, *, threshold=None, budget=None,
             curve='best', wanted=None):
  """Evaluates a run on the test split; prints a table and draws a picture.

  Thresholds are calibrated on held-out images for three targets: the accuracy
  of the last exit, this accuracy minus the config's `exits.slack`, and
  `mac_target` times the MACs without exits. They are estimates, for the first
  two by `cross_validation`: on other images the target may be missed. Those of
  `wanted` keep a promise. A target that cannot be met is left out. For
  regression, minus the mean absolute error replaces accuracy.

  Args:
    trainer: `loop.Trainer` of the run.
    state: `State` of the checkpoint to report on.
    metadata: dict of fields that describe the run, including 'workdir' and
      'phase'.
    budget: MACs to calibrate to, over those of the model without exits; None
      uses the config's `mac_target`.
    threshold: confidence threshold of all exits, or [E - 1] thresholds, instead
      of calibrated ones.
    curve: how the thresholds of the curve are found, one of `calibrate.CURVES`.
    wanted: `promised_row.Wanted`, or None.

  Returns:
    `metadata` with exits (a row for each exit alone), best_heads (see
    `best_heads`), same_accuracy, slack and mac_target, or threshold, and
    promised if wanted (a row each), and curve (rows of increasing MACs).
    Without threshold, there are no cascade rows if heads share a depth or there
    is one exit. A row has accuracy, or mae and rmse, macs, macs_ratio (over the
    MACs without exits), shares [E], paper_flops if the model's paper counts
    differently, and for a cascade thresholds [E - 1]; the row of an added exit
    also has layer, head, head_macs and head_params.

  Raises:
    ValueError: if no images were held out and no threshold is given, a
      threshold is out of its rule's range or given for a single exit, the
      number of thresholds is wrong, or the run is of another model.
  """
  system, phase = trainer.system, metadata['phase']
  if curve not in calibrate.CURVES:
    raise ValueError(f'--curve={curve} is unknown; known: '
                     f'{sorted(calibrate.CURVES)}')
  num_exits, holdout = system.num_exits, trainer.dataset.holdout
  if threshold is not None:
    _check_threshold(threshold, system, metadata['workdir'])
  if wanted is not None and num_exits == 1:
    raise ValueError(f'--risk={wanted.risk} needs several exits, but the model '
                     f"in {metadata['workdir']} has one; leave it out")
  # If several heads share a depth, every image would run all of them.
  depths = {e.place for e in system.exits}
  calibrated = threshold is None and len(depths) == num_exits > 1
  if calibrated and not len(holdout):
    raise ValueError('no images were held out to calibrate thresholds on; give '
                     '--threshold, or train with --config.data.holdout=0.1')
  params = state_lib.final_params(state)
  rows = _Rows(system, phase, trainer.exit_evaluator(
      phase, params, trainer.dataset.test))
  result = dict(metadata, rule=system.config.exits.rule,
                exits=[rows.exit(i, params) for i in range(num_exits)])
  if threshold is not None:
    result['threshold'] = rows.cascade(threshold)
  if len(holdout):
    outputs = trainer.exit_evaluator(phase, params, holdout)
    result['best_heads'] = best_heads(
        result['exits'], outputs.score.mean(1))
  if calibrated:
    budget = trainer.config.mac_target if budget is None else budget
    result.update(_calibrated(rows, system, outputs, budget, curve))
  if wanted is not None:
    fields, outputs = promised_row.of_exits(trainer, params, phase, wanted)
    result['promised'] = dict(_Rows(system, phase, outputs).cascade(
        fields['promise']['thresholds']), **fields)
  if jax.process_index() == 0:
    page = _show(result, system)
    workdir = epath.Path(metadata['workdir'])
    pictures.exits(result, workdir / 'exits.png')
    page.picture(workdir / 'exits.png', 'Accuracy against MACs'
                 if system.target is None else 'Error against MACs')
    page.write(workdir / 'report.html')
  return result


def _check_threshold(threshold, system, workdir):
  """Raises a ValueError unless the thresholds fit the exits and their rule."""
  if system.num_exits == 1:
    raise ValueError(f'--threshold={threshold} has no effect, since the '
                     f'model in {workdir} has a single exit; leave it out')
  confidence.check_range(system.config.exits.rule, threshold)
  confidence.check_thresholds(threshold, system.num_exits)


def _calibrated(rows, system, outputs, budget, curve):
  """Returns the rows at each target that can be met, and the curve.

  Args:
    rows: `_Rows` of the test split.
    system: `System`.
    outputs: `ExitOutputs` of the held-out images.
    budget: MACs over those of the model without exits.
    curve: one of `calibrate.CURVES`.

  Returns:
    Dict of same_accuracy, slack and mac_target, a row each, and curve, a list
    of rows.
  """
  images = outputs.confidence, outputs.score, outputs.macs
  result, estimates = {}, cross_validation.estimates(*images)
  for name, lost in (('same_accuracy', 0.),
                     ('slack', system.config.exits.slack)):
    result[name] = rows.cascade(cross_validation.cheapest(estimates, lost))
  try:
    point = calibrate.calibrate(
        *images, max_macs=budget * system.plain_cost.dense)
  except ValueError as error:
    logging.warning('no row mac_target: %s', error)
  else:
    result['mac_target'] = rows.cascade(point.thresholds)
  # Sorted, since the order of MACs on held-out images can differ.
  result['curve'] = sorted(
      (rows.cascade(point['thresholds'])
       for point in calibrate.CURVES[curve](*images)),
      key=lambda row: row['macs'])
  return result


class _Rows:
  """Makes rows of a report from outputs on the test split."""

  def __init__(self, system, phase, test):
    self._system, self._test = system, test
    # A paper's count covers the backbone's own exits and all layers.
    plain = not system.model.exits and (
        phases.decider(system.config, phase) == 'all')
    self._paper = system.model.paper_flops() if plain else None

  def cascade(self, thresholds):
    num = self._system.num_exits
    thresholds = confidence.check_thresholds(thresholds, num)
    chosen = confidence.choose(self._test.confidence, thresholds)
    return dict(self._row(chosen), thresholds=thresholds.tolist())

  def exit(self, index, params):
    """Row of one exit for all images; its MACs exclude other added heads."""
    system, exits = self._system, self._system.exits
    row = self._row(np.full(self._test.score.shape[1], index))
    heads = [cost.head_macs(system.model, e) if e.head else 0 for e in exits]
    macs = row['macs'] - sum(heads[:index])
    row.update(macs=macs, macs_ratio=macs / system.plain_cost.dense)
    e = exits[index]
    if e.head:
      leaves = jax.tree.leaves(params['heads'][f'exit_{e.index}'])
      row.update(layer=e.place, head=e.head, head_macs=heads[index],
                 head_params=sum(x.size for x in leaves))
    return row

  def _row(self, chosen):
    system, test = self._system, self._test
    images = np.arange(len(chosen))
    macs = float(np.cumsum(test.macs.astype(np.float64), 0)[chosen, images]
                 .mean())
    shares = np.bincount(chosen, minlength=system.num_exits) / len(chosen)
    metrics = system.task.metrics(test.score[chosen, images])
    row = dict({k: float(v) for k, v in metrics.items()}, macs=macs,
               macs_ratio=macs / system.plain_cost.dense,
               shares=shares.tolist())
    if self._paper is not None:
      row['paper_flops'] = cost.mean(self._paper, shares)
    return row


def _show(result, system):
  """Shows a report: the `Page`."""
  added = bool(system.model.exits)
  columns = [*_scores(system.target), table.MACS,
             ('of dense' if added else 'of last',
              lambda r: f"{r['macs_ratio']:.3f}")]
  if 'paper_flops' in result['exits'][0]:
    columns.append(
        ('MFLOPs, paper', lambda r: f"{r['paper_flops'] / 1e6:.2f}"))
  shares = ('left at each exit %', lambda r: ' '.join(
      f'{100 * s:.1f}' for s in r['shares']))
  page = page_lib.of(result, f", rule {result['rule']}" + _DROPS[
      phases.decider(system.config, result['phase'])])
  rows = [(_label(i, row), row) for i, row in enumerate(result['exits'])]
  extra = _HEAD_COLUMNS if added else ()
  page.table(rows, (*columns, *extra))
  if best_of_layers := result.get('best_heads'):
    page.text('\n'.join(
        f"after layer {best['layer']}: mean of the heads' scores "
        f"{best['mean']:.4f}, best {best['head']} {best['score']:.4f} "
        f"(held-out images)" for best in best_of_layers))
  cascades = [(label, result[key]) for key, label in _TARGETS if key in result]
  if system.target is not None:
    cascades = [(label.replace('accuracy', 'error'), row)
                for label, row in cascades]
  if cascades:
    page.table(cascades, (*columns, shares))
  for label, row in cascades:
    page.text(f"{label}: --rule={result['rule']} --threshold=" + ','.join(
        confidence.format_threshold(t) for t in row['thresholds']))
  if 'same_accuracy' in result and 'promised' not in result:
    page.text('These thresholds are estimates; --risk finds some that keep a '
              'promise.')
  if 'promised' in result:
    promised_row.show(result['promised'], page)
  return page


_HEAD_COLUMNS = (
    ('head MACs', lambda r: f"{r['head_macs']:,}" if 'head_macs' in r else '-'),
    ('head params',
     lambda r: f"{r['head_params']:,}" if 'head_params' in r else '-'),
)


def _scores(target):
  if target is None:
    return [table.ACCURACY]
  return [(f'{key.upper()}, {target.unit}', lambda r, key=key: f'{r[key]:.3f}')
          for key in ('mae', 'rmse')]


def _label(index, row):
  where = f", layer {row['layer']}, {row['head']}" if 'layer' in row else ''
  return f'exit {index} alone{where}'


def best_heads(rows, scores):
  """Returns the best head at each depth with several heads.

  Args:
    rows: rows of the exits, as in the report.
    scores: [E], mean score of each exit on held-out images.

  Returns:
    List of dicts: layer, head, its score, and mean, the mean score of all heads
    at this depth.
  """
  best_of_layers = []
  for layer in sorted({row['layer'] for row in rows if 'layer' in row}):
    here = [i for i, row in enumerate(rows) if row.get('layer') == layer]
    if len(here) > 1:
      best = max(here, key=lambda i: scores[i])
      best_of_layers.append(dict(
          layer=layer, head=rows[best]['head'], score=float(scores[best]),
          mean=float(np.mean(scores[here]))))
  return best_of_layers

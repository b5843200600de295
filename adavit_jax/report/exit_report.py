"""Report of a model with exits: each one alone, and the cascade."""

from absl import logging
from etils import epath
import jax
import numpy as np

from adavit_jax import cost
from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence
from adavit_jax.report import pictures
from adavit_jax.report import table
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib

_TARGETS = (('same_accuracy', 'cascade, same accuracy'),
            ('slack', 'cascade, slack'),
            ('mac_target', 'cascade, mac_target'),
            ('threshold', 'cascade, threshold given'))
_DROPS = {'all': '', 'mask': ', a mask drops layers',
          'policy': ', a policy drops layers'}


def evaluate(trainer, run, saved, about, *, threshold=None, budget=None):
  """Evaluates a run on the test split; prints a table and draws a picture.

  Thresholds are calibrated on held-out images: for the accuracy of the last
  exit, for that less the config's `exits.slack`, and for the config's
  `mac_target` of the MACs without exits. A target that cannot be met is left
  out. For regression, accuracy is minus the mean absolute error.

  Args:
    trainer: `loop.Trainer` of the run.
    run: the opened `Run`.
    saved: `Saved`, the checkpoint to report on.
    about: dict of what a report says of a run, 'workdir' among it.
    budget: MACs to calibrate to, as a share of the model's without exits; None
      takes the config's `mac_target`.
    threshold: of every exit's confidence, or [E - 1] of them, to use instead of
      calibrated ones.

  Returns:
    `about` with exits (a row for each alone), best_heads (see there),
    same_accuracy, slack and mac_target or threshold (a row each), and curve:
    rows of rising MACs; no cascade where heads share a depth, or of one exit.
    A row has accuracy, or mae and rmse, macs, macs_ratio (of the MACs without
    exits), shares [E], paper_flops where the model's paper counts otherwise
    and, for a cascade, thresholds [E - 1]; that of an added exit also layer,
    head, head_macs and head_params.

  Raises:
    ValueError: if no images were held out and no threshold is given, a
      threshold is out of its rule's range or given for a single exit, there
      are too many or too few, or the run is of another model.
  """
  system, workdir = trainer.system, about['workdir']
  num_exits, holdout = system.num_exits, trainer.dataset.holdout
  if threshold is not None:
    if num_exits == 1:
      raise ValueError(f'--threshold={threshold} has no use: the model in '
                       f'{workdir} has a single exit; leave it out')
    confidence.check_range(system.config.exits.rule, threshold)
    confidence.check_thresholds(threshold, num_exits)
  # Where several heads lie at one depth, every image would pay for all.
  places = [e.place for e in system.exits]
  budget = trainer.config.mac_target if budget is None else budget
  calibrated = threshold is None and len(set(places)) == num_exits > 1
  if calibrated and not len(holdout):
    raise ValueError('no images were held out to calibrate thresholds on; give '
                     '--threshold, or train with --config.data.holdout=0.1')
  phase = about['phase']
  params = state_lib.final_params(run.state(saved, system, trainer.mesh))
  test = trainer.exit_evaluator(phase, params, trainer.dataset.test)
  rows = _Rows(system, phase, test)
  result = dict(about, rule=system.config.exits.rule,
                exits=[rows.exit(i, params) for i in range(num_exits)])
  if threshold is not None:
    result['threshold'] = rows.cascade(threshold)
  if len(holdout):
    held = trainer.exit_evaluator(phase, params, holdout)
    result['best_heads'] = best_heads(result['exits'], held.score.mean(1))
  if calibrated:
    images = held.confidence, held.score, held.macs
    last = held.score[-1].mean(dtype=np.float64)
    targets = dict(
        same_accuracy=dict(min_accuracy=last),
        slack=dict(min_accuracy=last - system.config.exits.slack),
        mac_target=dict(max_macs=budget * system.plain_cost.dense))
    for name, target in targets.items():
      try:
        found = calibrate.calibrate(*images, **target)
      except ValueError as error:
        logging.warning('no row %s: %s', name, error)
      else:
        result[name] = rows.cascade(found.thresholds)
    # Calibrated on held-out images, where the order of the MACs can be another.
    result['curve'] = sorted(
        (rows.cascade(point['thresholds'])
         for point in calibrate.curve(*images)), key=lambda row: row['macs'])
  if jax.process_index() == 0:
    _show(result, system)
    pictures.exits(result, epath.Path(workdir) / 'exits.png')
  return result


class _Rows:
  """Makes rows of a report from the outputs on the test split."""

  def __init__(self, system, phase, test):
    self._system, self._test = system, test
    # A paper counts its own exits, and all layers.
    plain = not system.model.exits and (
        phases.decider(system.config, phase) == 'all')
    self._paper = system.model.paper_macs() if plain else None

  def cascade(self, thresholds):
    num = self._system.num_exits
    thresholds = confidence.check_thresholds(thresholds, num)
    chosen = confidence.choose(self._test.confidence, thresholds)
    return dict(self._row(chosen), thresholds=thresholds.tolist())

  def exit(self, index, params):
    """One exit for all images; its MACs hold no other added head."""
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
    found = system.task.metrics(test.score[chosen, images])
    row = dict({k: float(v) for k, v in found.items()}, macs=macs,
               macs_ratio=macs / system.plain_cost.dense,
               shares=shares.tolist())
    if self._paper is not None:
      row['paper_flops'] = 2 * cost.mean(self._paper, shares)
    return row


def _show(result, system):
  added = bool(system.model.exits)
  columns = [*_scores(system.target), table.MACS,
             ('of dense' if added else 'of last',
              lambda r: f"{r['macs_ratio']:.3f}")]
  if 'paper_flops' in result['exits'][0]:
    columns.append(
        ('MFLOPs, paper', lambda r: f"{r['paper_flops'] / 1e6:.2f}"))
  shares = ('left at each exit %', lambda r: ' '.join(
      f'{100 * s:.1f}' for s in r['shares']))
  print(f"\n{result['num_test']} test images, seed {result['seed']}, "
        f"{result['device']}, rule {result['rule']}"
        + _DROPS[phases.decider(system.config, result['phase'])] + '\n')
  rows = [(_label(i, row), row) for i, row in enumerate(result['exits'])]
  extra = _HEAD_COLUMNS if added else ()
  print(table.format_rows(rows, (*columns, *extra)))
  for found in result.get('best_heads', ()):
    print(f"after layer {found['layer']}: mean of the heads' scores "
          f"{found['mean']:.4f}, best {found['head']} {found['score']:.4f} "
          f"(held-out images)")
  cascades = [(label, result[key]) for key, label in _TARGETS if key in result]
  if system.target is not None:
    cascades = [(label.replace('accuracy', 'error'), row)
                for label, row in cascades]
  if cascades:
    print()
    print(table.format_rows(cascades, (*columns, shares)))
  for label, row in cascades:
    print(f"\n{label}: --rule={result['rule']} --threshold=" + ','.join(
        _threshold(t) for t in row['thresholds']))


def _threshold(value):
  if abs(value) == confidence.NEVER:
    return 'inf' if value > 0 else '-inf'
  # All digits: near 1 a probability leaves no room to round.
  return repr(float(value))


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
  """The best of several heads at each depth that has them.

  Args:
    rows: of the exits, as in the report.
    scores: [E], mean score of each on held-out images.

  Returns:
    List of dicts: layer, head, its score, and mean, that of all heads there.
  """
  found = []
  for layer in sorted({row['layer'] for row in rows if 'layer' in row}):
    here = [i for i, row in enumerate(rows) if row.get('layer') == layer]
    if len(here) > 1:
      best = max(here, key=lambda i: scores[i])
      found.append(dict(layer=layer, head=rows[best]['head'],
                        score=float(scores[best]),
                        mean=float(np.mean(scores[here]))))
  return found

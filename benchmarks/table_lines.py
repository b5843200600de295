"""The lines of a table: measured accuracy and FLOPs beside the paper's."""

import numpy as np

UNITS = {'M': 1e6, 'G': 1e9}


def of(table, results, stage_flops):
  """Returns the lines of a table, dicts for JSON.

  Args:
    table: `paper_tables.Table`.
    results: {(run, seed): dict of `table_runs.result`}, of the runs so far.
    stage_flops: {run: FLOPs of each stage alone, [E]}, of all runs and the
      reference, see `table_runs.flops`.

  Returns:
    A dict for each row, or for each added exit in the layout 'heads': label,
    run, entropy; accuracy, {seed: %}, and its mean, None without results;
    flops in the table's unit, the mean over seeds, and percent, their share of
    the reference's, both None if unknown; paper, its accuracy, flops and
    percent. Of a head also layer, head and head_macs.
  """
  if table.layout == 'heads':
    return [line for row in table.rows
            for line in _heads(row, _of_run(row.run, results))]
  total = {run: float(np.sum(x)) for run, x in stage_flops.items()}
  lines = []
  for row in table.rows:
    found = {seed: at for seed, result in _of_run(row.run, results).items()
             if (at := _at(row, result)) is not None}
    # Without early exits it does not depend on the images.
    flops = total[row.run] if row.entropy is None else None
    if flops is None and found:
      flops = np.mean([_flops(at) for at in found.values()])
    share = None
    if table.reference and flops is not None:
      share = 100 * flops / total[table.reference]
    lines.append(dict(
        label=row.label, run=row.run, entropy=row.entropy, **_accuracy(found),
        flops=None if flops is None else float(flops / UNITS[table.unit]),
        percent=None if share is None else float(share),
        paper=dict(accuracy=row.accuracy, flops=row.flops,
                   percent=row.percent)))
  return lines


def _of_run(run, results):
  """Returns {seed: result} of a run."""
  return {seed: result for (name, seed), result in sorted(results.items())
          if name == run}


def _at(row, result):
  """The entry of the results that a row shows; None if it was not measured."""
  if row.entropy is None:
    return result['exits'][-1]
  return next((at for at in result['entropies']
               if at['entropy'] == row.entropy), None)


def _flops(at):
  if at['paper_flops'] is None:
    return 2 * at['macs']
  return at['paper_flops']


def _accuracy(found):
  """Accuracies in % of {seed: entry}."""
  each = {seed: 100 * at['accuracy'] for seed, at in found.items()}
  return dict(accuracy=each,
              mean=float(np.mean(list(each.values()))) if each else None)


def _heads(row, results):
  """Lines of the added exits of a run."""
  lines = []
  for places in zip(*(
      [(seed, e) for e in result['exits'] if 'head' in e]
      for seed, result in results.items())):
    found = dict(places)
    e = places[0][1]
    lines.append(dict(
        label=f"{e['head']}, layer {e['layer']}", run=row.run, entropy=None,
        **_accuracy(found), flops=2 * e['macs'] / UNITS['M'], percent=None,
        layer=e['layer'], head=e['head'], head_macs=e['head_macs'],
        paper=dict(accuracy=None, flops=None, percent=None)))
  return lines

"""Draws accuracy against measured time of a trained policy:

  python benchmarks/accuracy_time.py --workdir=DIR --output=FILE.png

One model serves every budget. Each threshold of the sweep in DIR/report.json,
which has its test accuracy, is timed on test images as `adavit_jax.load(DIR)`
runs it. The static sub-networks that eval.py tuned in DIR/static are timed in
the same way. The rows are also written to FILE.json.
"""

import argparse
import json
import os
import sys

from matplotlib.figure import Figure

from adavit_jax import errors
import reports
import timing
import trained


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--workdir', required=True, type=os.path.expanduser,
      help='run that eval.py evaluated')
  add('--output', required=True, help='PNG file to draw')
  add('--batches', default='1,256', help='batch sizes')
  add('--repeats', default=9, type=int, help='timed rounds')
  add('--data_dir', help='data directory, if it moved')
  args = parser.parse_args(argv)
  try:
    report = read(args.workdir)
    batches = [int(batch) for batch in args.batches.split(',')]
    rows = measure(report, args.workdir, batches, args.repeats, args.data_dir)
  except errors.USER_ERRORS as error:
    sys.exit(f'error: {error}')
  with open(os.path.splitext(args.output)[0] + '.json', 'w',
            encoding='utf-8') as f:
    json.dump(rows, f, indent=1)
  draw(report, rows).savefig(args.output, dpi=130)


def read(workdir):
  """Returns the report.json of a run.

  Raises:
    ValueError: if there is none, or it has no sweep.
  """
  report = reports.read(workdir)
  if 'sweep' not in report:
    raise ValueError(f'report.json of {workdir} has no sweep over the '
                     f'thresholds of a policy; give the --workdir of a run '
                     f'with a policy')
  return report


def measure(report, workdir, batches, repeats, data_dir=None):
  """Times the policy at the thresholds of its sweep, and static sub-networks.

  Args:
    report: from `read`.
    workdir: directory of the run.
    batches: batch sizes.
    repeats: rounds.
    data_dir: replaces the config's.

  Returns:
    list of `timing.row`, each with the test `accuracy` of the report.

  Raises:
    ValueError: as `trained.check`.
  """
  accuracy = {'dense': report['dense']['accuracy']}
  settings = {}
  for point in report['sweep']:
    name = f'threshold {point["threshold"]:.4f}'
    settings[name], accuracy[name] = point['threshold'], point['accuracy']
  rows = []
  print(timing.header())
  def add(timed, accuracy):
    for row in timed:
      rows.append({**row, 'accuracy': accuracy[row['mode']]})
      print(timing.format_row(row), flush=True)
  add(trained.rows(workdir, batches, repeats=repeats, settings=settings,
                   data_dir=data_dir), accuracy)
  tuned = {report[name]['keep']: report[name]['accuracy']
           for name in ('static', 'static_last') if name in report}
  for keep, value in tuned.items():
    add((row for row in trained.rows(
        os.path.join(workdir, 'static', keep), batches, repeats=repeats,
        data_dir=data_dir) if row['mode'] == 'static'), {'static': value})
  return rows


def draw(report, rows):
  """Draws accuracy against time, a curve for each batch size; a `Figure`."""
  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = figure.subplots()
  batches = sorted({row['batch'] for row in rows})
  for i, batch in enumerate(batches):
    pick = lambda test, batch=batch: [
        (row['time_ratio'], 100 * row['accuracy']) for row in rows
        if row['batch'] == batch and test(row['mode'])]
    name = '1 image' if batch == 1 else f'{batch} images'
    axes.plot(*zip(*pick(lambda mode: mode.startswith('threshold'))),
              f'C{i}o-', label=f'layers chosen per image, {name}')
    if static := pick(lambda mode: mode == 'static'):
      axes.plot(*zip(*static), f'C{i}x',
                label=f'static sub-network, tuned, {name}')
  axes.plot(1, 100 * report['dense']['accuracy'], 'k*', markersize=10,
            label='all layers')
  axes.set(xlabel="measured time as a share of the dense model's",
           ylabel='test accuracy, %', xlim=(0, None))
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  return figure


if __name__ == '__main__':
  main()

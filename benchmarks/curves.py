"""Draws accuracy against MACs of several runs with exits:

  python benchmarks/curves.py --output=FILE.png LABEL=DIR LABEL=DIR ...

Each DIR contains the report.json of eval.py.
"""

import sys

from matplotlib.figure import Figure

import reports as reports_lib


def main(output, *runs):
  """Draws the curve and the single exits of each LABEL=DIR into a PNG file."""
  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = figure.subplots()
  reports = []
  for run in runs:
    label, equals, directory = run.partition('=')
    if not equals:
      sys.exit(f'error: {run!r} is not LABEL=DIR')
    try:
      reports.append((label, reports_lib.read(directory)))
    except ValueError as error:
      sys.exit(f'error: {error}')
    if 'curve' not in reports[-1][1]:
      sys.exit(f'error: report.json of {directory} has no curve: the model '
               f'does not have exits at several layers, or eval.py was given '
               f'thresholds')
  if len({'accuracy' in r['exits'][0] for _, r in reports}) > 1:
    sys.exit('error: the runs mix classification and regression, which cannot '
             'share an axis')
  for i, (label, report) in enumerate(reports):
    classes = 'accuracy' in report['exits'][0]
    score = lambda r: 100 * r['accuracy'] if classes else r['mae']
    for key, style, name in (('curve', '-', label),
                             ('exits', '^', f'{label}: exits alone')):
      rows = report[key]
      axes.plot([r['macs_ratio'] for r in rows], [score(r) for r in rows],
                f'C{i}{style}', label=name)
  axes.set(xlabel='MACs as a share of the model without exits',
           ylabel='test accuracy, %' if classes else 'mean absolute error')
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  figure.savefig(output, dpi=130)


if __name__ == '__main__':
  flag, *labeled = sys.argv[1:] or ['']
  if not flag.startswith('--output=') or not labeled:
    sys.exit(__doc__)
  main(flag.removeprefix('--output='), *labeled)

"""Draws accuracy against MACs of several runs with exits:

  python benchmarks/curves.py --output=FILE.png LABEL=DIR LABEL=DIR ...

Each DIR contains the report.json of eval.py.
"""

import json
import os
import sys

from matplotlib.figure import Figure


def main(output, *runs):
  """Draws the curve and the single exits of each LABEL=DIR into a PNG file."""
  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = figure.subplots()
  reports = []
  for run in runs:
    label, equals, directory = run.partition('=')
    path = os.path.join(directory, 'report.json')
    if not equals:
      sys.exit(f'error: {run!r} is not LABEL=DIR')
    if not os.path.exists(path):
      sys.exit(f'error: there is no {path}; run python eval.py '
               f'--workdir={directory} first')
    with open(path, encoding='utf-8') as f:
      reports.append((label, json.load(f)))
    if 'curve' not in reports[-1][1]:
      sys.exit(f'error: {path} has no curve: the model does not have exits at '
               f'several layers, or eval.py was given thresholds')
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
  flag, *labelled = sys.argv[1:] or ['']
  if not flag.startswith('--output=') or not labelled:
    sys.exit(__doc__)
  main(flag.removeprefix('--output='), *labelled)

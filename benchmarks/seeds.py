"""Prints mean and spread of the reports of several seeds:

  python benchmarks/seeds.py runs/scenes0 runs/scenes1 runs/scenes2

Each directory contains the report.json of eval.py. The spread is the sample
standard deviation over the seeds.
"""

import sys

import numpy as np

import reports as reports_lib

_ROWS = ('dense', 'adaptive', 'adaptive_at_static', 'static', 'static_last',
         'random', 'shuffled')
_POLICY = ('unique_actions', 'difficulty_correlation', 'kept_easy',
           'kept_hard', 'kept_std', 'agreement')


def main(directories):
  if not directories or directories[0].startswith('-'):
    raise SystemExit(__doc__)
  reports = []
  for directory in directories:
    try:
      reports.append(reports_lib.read(directory))
    except ValueError as error:
      raise SystemExit(f'error: {error}') from error
    if 'adaptive' not in reports[-1]:
      raise SystemExit(f"error: report.json of {directory} has no row "
                       f"'adaptive', since its run has no policy, or its model "
                       f'has exits')
  seeds = [r['seed'] for r in reports]
  if len(set(seeds)) < len(seeds):
    raise SystemExit(f'error: the runs have seeds {seeds}; give one run per '
                     f'seed')
  budgets = sorted({r['budget'] for r in reports})
  if len(budgets) > 1:
    raise SystemExit(f'error: the reports are for budgets of {budgets}; run '
                     f'eval.py with one --mac_target for all')
  for directory, report in zip(directories, reports):
    if not report['finished']:
      raise SystemExit(f'error: {directory} was not finished when eval.py '
                       f'reported on it; finish it and run eval.py again')
  print(f'{len(reports)} seeds: {seeds}\n')
  _table('tuned for the budget', reports)
  one = [r['one_set_of_weights'] for r in reports]
  if all(one):
    _table('one set of weights', one)


def _table(title, reports):
  print(f'| {title} | accuracy % | MACs of dense | encoder MACs |')
  print('|---|---|---|---|')
  for name in _ROWS:
    if all(name in r for r in reports):
      cells = [_spread([r[name][key] for r in reports], scale, digits)
               for key, scale, digits in (('accuracy', 100, 2),
                                          ('macs_ratio', 1, 3),
                                          ('encoder_macs_ratio', 1, 3))]
      print(f'| {name.replace("_", " ")} | {" | ".join(cells)} |')
  print()
  for name in ('dense', 'static', 'random'):
    if all(name in r for r in reports):
      _gain('adaptive', name, reports)
  if all('adaptive_at_static' in r for r in reports):
    _gain('adaptive_at_static', 'static', reports)
  for key in _POLICY:
    values = [r['adaptive'].get(key) for r in reports]
    if None not in values:
      print(f'{key}: {_spread(values, 1, 3)}')
  print()


def _gain(name, other, reports):
  gains = [r[name]['accuracy'] - r[other]['accuracy'] for r in reports]
  print(f'{name} - {other}: {_spread(gains, 100, 2)} points')


def _spread(values, scale, digits):
  values = scale * np.asarray(values, float)
  text = f'{values.mean():.{digits}f}'
  if len(values) > 1:
    text += f' ± {values.std(ddof=1):.{digits}f}'
  return text


if __name__ == '__main__':
  main(sys.argv[1:])

"""Budgets that are not known before, on a machine that has other work:

  python benchmarks/deadlines.py --data_dir=DIR --load=1 --output=deadlines.json

For each of many batches of test images, a budget is drawn, from half the time
of the first exit to `--longest` times that of the last one, uniform in its
logarithm. `clf.within` and every fixed exit classify the batch, in random
order. Prints a row of Markdown for each: the share of answers in time, the
accuracy, the share of images whose answer is both right and in time, and how
many calls went beyond the first exit and how many of these were in time; the
last columns are the shares in time, and of both, in five ranges of the budget.
`--load` starts processes that multiply matrices meanwhile. Times are from uint8
images to labels.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time

from absl import app
from absl import flags
import jax
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax import errors
from adavit_jax.exits import confidence
import timing

_MODEL = flags.DEFINE_string('model', 'cifar10-exits', 'Run with exits, as '
                             '`adavit_jax.load` takes it.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Data directory, if it '
                                'moved.')
_CALLS = flags.DEFINE_integer('calls', 2000, 'Budgets.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 1, 'Images of a call.', lower_bound=1)
_LONGEST = flags.DEFINE_float('longest', 3., 'The largest budget, over the '
                              'time of the last exit without load.')
_LOAD = flags.DEFINE_integer('load', 1, 'Processes that multiply matrices.',
                             lower_bound=0)
_QUANTILE = flags.DEFINE_float('quantile', 0.95, 'See `clf.within`.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of images, budgets and order.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')
_RANGES = 5
_BUSY = '''
import numpy as np
x = np.ones((256, 256), np.float32)
while True:
  x = x @ x * 0
'''


@contextlib.contextmanager
def busy(num):
  """Keeps `num` other processes multiplying matrices."""
  env = dict(os.environ, OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1')
  with contextlib.ExitStack() as stack:
    for _ in range(num):
      process = subprocess.Popen([sys.executable, '-c', _BUSY], env=env)
      stack.callback(process.wait)
      stack.callback(process.kill)
    yield


def ways(clf, quantile):
  """Returns {name: (images [B, ...], budget) -> (labels [B], exits [B], ms)}.

  Args:
    clf: `CascadeClassifier`.
    quantile: as of `clf.within`.
  """
  own, num = clf.thresholds, clf.system.num_exits
  found = {f'exit {e}': (lambda images, budget, e=e: fixed(clf, e, images))
           for e in range(num)}
  def within(images, budget, thresholds):
    clf.thresholds = thresholds
    answer = clf.within(images, budget, quantile=quantile)
    return answer.labels, answer.exit, answer.milliseconds
  found['within'] = lambda images, budget: within(
      images, budget, confidence.NEVER)
  found['within, thresholds'] = lambda images, budget: within(
      images, budget, own)
  return found


def fixed(clf, e, images):
  """Classifies images at exit `e`; returns (labels, exits, milliseconds)."""
  clf.thresholds = np.where(np.arange(clf.system.num_exits - 1) < e,
                            confidence.NEVER, confidence.ALWAYS)
  start = time.perf_counter()
  answer = clf(images)
  taken = 1e3 * (time.perf_counter() - start)
  return answer.labels, answer.exit, taken


def measure(clf, images, labels, budgets, quantile, rng):
  """Classifies each batch in every way.

  Args:
    clf: `CascadeClassifier`; its thresholds are those of the last way.
    images: uint8 [n, B, S, S, C].
    labels: [n, B].
    budgets: [n] milliseconds.
    quantile: as of `clf.within`.
    rng: NumPy generator, of the order of the ways.

  Returns:
    {name: dict of [n]: right, the share of the images; exit, the mean of the
    images; milliseconds}.
  """
  functions = ways(clf, quantile)
  rows = {name: [] for name in functions}
  for batch, wanted, budget in zip(images, labels, budgets):
    for name in rng.permutation(list(functions)):
      y, exits, taken = functions[name](batch, budget)
      rows[name].append(((y == wanted).mean(), exits.mean(), taken))
  return {name: dict(zip(('right', 'exit', 'milliseconds'),
                         map(np.array, zip(*values))))
          for name, values in rows.items()}


def summary(found, budgets):
  """Returns a dict of numbers of one way.

  Args:
    found: dict of [n], see `measure`.
    budgets: [n] milliseconds.
  """
  in_time = found['milliseconds'] <= budgets
  both = in_time * found['right']
  order = np.array_split(np.argsort(budgets), _RANGES)
  taken, beyond = found['milliseconds'], found['exit'] > 0
  return dict(
      beyond=beyond.mean(),
      in_time_beyond=in_time[beyond].mean() if beyond.any() else None,
      in_time=in_time.mean(), accuracy=found['right'].mean(), both=both.mean(),
      exit=found['exit'].mean(), median_ms=np.median(taken),
      p95_ms=np.quantile(taken, 0.95),
      ranges=[dict(low=budgets[i].min(), high=budgets[i].max(),
                   in_time=in_time[i].mean(), accuracy=found['right'][i].mean(),
                   both=both[i].mean(), exit=found['exit'][i].mean())
              for i in order])


def table(summaries):
  """Returns the summaries as Markdown, {name: summary}."""
  first = next(iter(summaries.values()))
  spans = [f'{r["low"]:.2f} to {r["high"]:.2f}' for r in first['ranges']]
  lines = ['| | in time % | right % | both % | later exits %, in time | median '
           'ms, 95 % | ' + ' | '.join(f'{span} ms' for span in spans) + ' |',
           '|' + '---|' * (6 + len(spans))]
  for name, row in summaries.items():
    cells = [f'{100 * row[key]:.1f}' for key in ('in_time', 'accuracy', 'both')]
    later = f'{100 * row["beyond"]:.1f}'
    if row['beyond']:
      later += f', {100 * row["in_time_beyond"]:.1f}'
    cells += [later, f'{row["median_ms"]:.2f}, {row["p95_ms"]:.2f}']
    cells += [f'{100 * r["in_time"]:.1f}, {100 * r["both"]:.1f}'
              for r in row['ranges']]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    run()
  except errors.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error


def run():
  clf = adavit_jax.load(_MODEL.value)
  if not clf.system.staged or clf.system.num_exits == 1:
    raise ValueError(f'--model={_MODEL.value} has a single exit; give a run '
                     f'with several')
  config = clf.system.config.copy_and_resolve_references()
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  test = data.load(config.data, seed=config.seed).test
  rng = np.random.default_rng(_SEED.value)
  chosen = rng.integers(0, len(test), (_CALLS.value, _BATCH.value))
  images = data.center(test.images(chosen.ravel()),
                       clf.system.model.image_size)
  images = images.reshape(*chosen.shape, *images.shape[1:])
  exits = clf.time_stages(images[0])  # without load
  print(f'{jax.devices()[0].device_kind}, {timing.num_cores()} CPU cores '
        f'({platform.machine()}), jax {jax.__version__}; {_CALLS.value} '
        f'calls of {_BATCH.value}, seed {_SEED.value}, load {_LOAD.value}, '
        f'quantile {_QUANTILE.value}; exits after '
        f'{", ".join(f"{x:.2f}" for x in exits)} ms\n')
  budgets = np.exp(rng.uniform(
      np.log(exits[0] / 2), np.log(_LONGEST.value * exits[-1]), _CALLS.value))
  with busy(_LOAD.value):
    found = measure(clf, images, test.labels[chosen], budgets,
                    _QUANTILE.value, rng)
  summaries = {name: summary(x, budgets) for name, x in found.items()}
  print(table(summaries))
  if _OUTPUT.value:
    with open(_OUTPUT.value, 'w', encoding='utf-8') as f:
      json.dump(dict(
          exits_ms=exits.tolist(), device=jax.devices()[0].device_kind,
          cores=timing.num_cores(), jax=jax.__version__, seed=_SEED.value,
          load=_LOAD.value, quantile=_QUANTILE.value, batch=_BATCH.value,
          rows=summaries), f, indent=1, default=float)


if __name__ == '__main__':
  app.run(main)

"""Compares trained runs by accuracy and measured time, in one table:

  python benchmarks/rivals.py --output=rivals --batches=1,32 \\
      dense=runs/policy,phase=dense merge=runs/policy,phase=dense,merge=8 \\
      exits=runs/exits,row=slack policy=runs/policy,row=adaptive

The first is the reference of times and MACs. Each is loaded as
`adavit_jax.load` does: phase, best, decide and attributes of the model follow
the directory. `row` is a row of its report.json, whose thresholds it runs
with. Accuracy and MACs are means over the test split, time is of test images
from uint8 to predictions, the runs in turn. Rows go to FILE.json, a picture to
FILE.png.
"""

import ast
import json
from typing import Any, NamedTuple

from absl import app
from absl import flags
import jax
from matplotlib.figure import Figure
from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.runs import saved_run
from adavit_jax import errors
import reports
import timing

_OUTPUT = flags.DEFINE_string(
    'output', None, 'FILE.json and FILE.png are written.', required=True)
_BATCHES = flags.DEFINE_list('batches', ['1', '32'], 'Batch sizes.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed rounds.', 1)


class Rival(NamedTuple):
  """A run and how it is loaded.

  Attributes:
    label: its name in the table.
    workdir: directory of the run.
    row: row of report.json with its thresholds; '' for those it loads with.
    options: arguments of `adavit_jax.load`.
  """
  label: str
  workdir: str
  row: str
  options: dict[str, Any]


def parse(text):
  """Parses LABEL=DIR,KEY=VALUE,...

  Raises:
    ValueError: if it has another form.
  """
  label, equals, rest = text.partition('=')
  workdir, *pairs = rest.split(',')
  options = dict(pair.split('=', 1) for pair in pairs if '=' in pair)
  if not equals or not workdir or len(options) < len(pairs):
    raise ValueError(f'{text!r} is not LABEL=DIR,KEY=VALUE,...')
  row = options.pop('row', '')
  return Rival(label, workdir, row, {k: _value(v) for k, v in options.items()})


def _value(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def load(rival, max_batch_size):
  """Loads a rival; raises a ValueError if its report lacks the row."""
  clf = adavit_jax.load(
      rival.workdir, max_batch_size=max_batch_size, **rival.options)
  if rival.row:
    report = reports.read(rival.workdir)
    if rival.row not in report:
      raise ValueError(f'row={rival.row!r} is not in report.json of '
                       f'{rival.workdir}')
    if clf.system.staged:
      clf.thresholds = report[rival.row]['thresholds']
    else:
      setattr(clf, clf.knob.name, report[rival.row][clf.knob.name])
  return clf


def measure(rivals, batches, repeats):
  """Returns a row for each rival: accuracy, MACs and times.

  Args:
    rivals: list of `Rival`; the first is the reference.
    batches: batch sizes.
    repeats: timed rounds.

  Raises:
    ValueError: as `load`, or if the rivals have different test images.
  """
  classifiers = {r.label: load(r, max(batches)) for r in rivals}
  test, size = _test_images(rivals)
  images = data.centre(test.images(np.arange(len(test))), size)
  rows = []
  for rival in rivals:
    out = classifiers[rival.label](images)
    rows.append(dict(
        label=rival.label, accuracy=float((out.labels == test.labels).mean()),
        macs=float(np.mean(out.macs)), images=len(test)))
    print(f'{rival.label}: {100 * rows[-1]["accuracy"]:.2f} % of {len(test)} '
          f'images', flush=True)
  for row in rows:
    row['macs_ratio'] = row['macs'] / rows[0]['macs']
  for batch in batches:
    for row, (ratio, ms, quartiles) in zip(
        rows, _times(classifiers, images, batch, repeats)):
      row.update({f'time_ratio_{batch}': ratio, f'ms_{batch}': ms,
                  f'quartiles_ms_{batch}': quartiles})
  return rows


def _test_images(rivals):
  """Returns (test split, side of the images) that all rivals share."""
  configs = []
  for rival in rivals:
    with saved_run.Run(rival.workdir) as run:
      configs.append(config_dict.ConfigDict(run.newest().info['config']))
  first, *others = configs
  for field in ('name', 'data_dir', 'labels', 'image_size', 'load_size',
                'crop'):
    want = first.data.get(field)
    for other in others:
      if other.data.get(field) != want:
        raise ValueError(f'data.{field} of the runs differs: {want!r} and '
                         f'{other.data.get(field)!r}; give runs on the same '
                         f'images')
  return (data.load(first.data, seed=first.seed).test, first.data.image_size)


def _times(classifiers, images, batch, repeats):
  """Yields (time over the first one's, ms, quartiles in ms) per rival."""
  rng = np.random.default_rng(0)
  count = max(1, 16 // batch)
  drawn = [images[rng.integers(0, len(images), (count, batch))]
           for _ in range(repeats + 1)]
  times = timing.alternate({
      label: lambda i, clf=clf: [clf(part).logits for part in drawn[i]]
      for label, clf in classifiers.items()}, repeats)
  first = np.median(next(iter(times.values())))
  for seconds in times.values():
    ms = 1e3 * seconds / count
    yield (float(np.median(seconds) / first), float(np.median(ms)),
           np.percentile(ms, (25, 75)).tolist())


def table(rows, batches):
  """Formats the rows as Markdown."""
  titles = ['', '%', 'MACs', *(f'time, {b}' for b in batches),
            *(f'ms, {b}' for b in batches)]
  lines = [titles, ['---'] * len(titles)]
  for row in rows:
    lines.append([row['label'], f'{100 * row["accuracy"]:.2f}',
                  f'{row["macs_ratio"]:.3f}',
                  *(f'{row[f"time_ratio_{b}"]:.2f}' for b in batches),
                  *(f'{row[f"ms_{b}"]:.1f}' for b in batches)])
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def draw(rows, batches):
  """Draws accuracy against time, a panel for each batch size; a `Figure`."""
  figure = Figure(figsize=(5 * len(batches), 4), layout='constrained')
  for axes, batch in zip(
      np.atleast_1d(figure.subplots(1, len(batches), sharey=True)), batches):
    for i, row in enumerate(rows):
      at = row[f'time_ratio_{batch}'], 100 * row['accuracy']
      axes.plot(*at, 'o' if i else '*', color=None if i else 'k')
      axes.annotate(row['label'], at, xytext=(4, 4), fontsize=8,
                    textcoords='offset points')
    axes.set(xlabel=f'measured time over that of {rows[0]["label"]}, batches '
                    f'of {batch}', xlim=(0, None))
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('test accuracy, %')
  return figure


def main(argv):
  try:
    rivals, batches = list(map(parse, argv[1:])), list(map(int, _BATCHES.value))
    if not rivals:
      raise ValueError('no run is given: LABEL=DIR,KEY=VALUE,...')
    rows = measure(rivals, batches, _REPEATS.value)
  except errors.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error
  device = f'{jax.devices()[0].device_kind}, {timing.num_cores()} cores'
  with open(f'{_OUTPUT.value}.json', 'w', encoding='utf-8') as file:
    json.dump(dict(device=device, jax=jax.__version__, rows=rows), file,
              indent=1)
  draw(rows, batches).savefig(f'{_OUTPUT.value}.png', dpi=130)
  print(table(rows, batches))


if __name__ == '__main__':
  app.run(main)

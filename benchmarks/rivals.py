"""Compares trained runs by accuracy and measured time, in one table:

  python benchmarks/rivals.py --output=rivals --batches=1,32 \\
      dense=runs/policy,phase=dense merge=runs/policy,phase=dense,merge=8 \\
      exits=runs/exits,row=slack policy=runs/policy,row=adaptive

The first is the reference of times and MACs. Each is loaded as
`adavit_jax.load` does: phase, best, decide and attributes of the model follow
the directory. One more option sets its thresholds. `row` is a row of its
report.json. `lost=0.01` calibrates them on the held-out images: those of exits
to lose a point against the last exit, the threshold or price of a policy to
lose one against all layers; where every number loses more, all layers run.
`exit=2` lets every image leave at the third exit.
Runs with the same label are seeds of one row, which has their means
and the spread of their accuracies. Accuracy and MACs are means over the
test split, time is of test images from uint8 to predictions, the runs in turn;
a run on smaller images gets them at its own size. Rows go to FILE.json, a
picture to FILE.png.
"""

import json

from absl import app
from absl import flags
import jax
from matplotlib.figure import Figure
from ml_collections import config_dict
import numpy as np

from adavit_jax import errors
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import saved_run
import rival_runs
import timing

_OUTPUT = flags.DEFINE_string(
    'output', None, 'FILE.json and FILE.png are written.', required=True)
_BATCHES = flags.DEFINE_list('batches', ['1', '32'], 'Batch sizes.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed rounds.', 1)


def measure(rivals, batches, repeats):
  """Returns a row for each rival: accuracy, MACs and times.

  Args:
    rivals: list of `rival_runs.Rival`; the first is the reference.
    batches: batch sizes.
    repeats: timed rounds.

  Raises:
    ValueError: as `rival_runs.load`, or if the rivals have different test
      images.
  """
  inputs, labels = _test_images(rivals)
  classifiers = [rival_runs.load(r, max(batches)) for r in rivals]
  rows = []
  for rival, clf, images in zip(rivals, classifiers, inputs):
    out = clf(images)
    rows.append(dict(
        label=rival.label, accuracy=float((out.labels == labels).mean()),
        macs=float(np.mean(out.macs)), images=len(labels)))
    print(f'{rival.label}: {100 * rows[-1]["accuracy"]:.2f} % of {len(labels)} '
          f'images', flush=True)
  for row in rows:
    row['macs_ratio'] = row['macs'] / rows[0]['macs']
  for batch in batches:
    for row, (ratio, ms, quartiles) in zip(
        rows, _times(classifiers, inputs, batch, repeats)):
      row.update({f'time_ratio_{batch}': ratio, f'ms_{batch}': ms,
                  f'quartiles_ms_{batch}': quartiles})
  return over_seeds(rows)


def over_seeds(rows):
  """Returns one row for each label: means, and `accuracies` of its seeds."""
  groups = {}
  for row in rows:
    groups.setdefault(row['label'], []).append(row)
  mean = lambda values: np.mean(values, 0).tolist()
  return [{**{key: value if key == 'label' else mean([r[key] for r in group])
              for key, value in group[0].items()},
           'accuracies': [row['accuracy'] for row in group]}
          for group in groups.values()]


def _test_images(rivals):
  """Returns (test images of each rival at its size, labels they share)."""
  configs = []
  for rival in rivals:
    with saved_run.Run(rival.workdir) as run:
      configs.append(config_dict.ConfigDict(run.find().info['config']))
  first = configs[0]
  for field in ('name', 'data_dir', 'labels'):
    want = first.data.get(field)
    for other in configs[1:]:
      if other.data.get(field) != want:
        raise ValueError(f'data.{field} of the runs differs: {want!r} and '
                         f'{other.data.get(field)!r}; give runs on the same '
                         f'images')
  sizes, inputs = {}, []
  for config in configs:
    c = config.data
    size = c.image_size, c.get('load_size'), c.get('crop')
    if size not in sizes:
      sizes[size] = rival_runs.images_of(config, 'test')
    inputs.append(sizes[size].images)
  return inputs, next(iter(sizes.values())).labels


def _times(classifiers, inputs, batch, repeats):
  """Yields (time over the first one's, ms, quartiles in ms) per rival."""
  rng = np.random.default_rng(0)
  count = max(1, 16 // batch)
  drawn = rng.integers(0, len(inputs[0]), (repeats + 1, count, batch))

  def run(clf, images):
    return lambda i: [clf(images[rows]).logits for rows in drawn[i]]

  times = timing.alternate(
      {k: run(clf, images)
       for k, (clf, images) in enumerate(zip(classifiers, inputs))}, repeats)
  first = np.median(times[0])
  for seconds in times.values():
    ms = 1e3 * seconds / count
    yield (float(np.median(seconds) / first), float(np.median(ms)),
           np.percentile(ms, (25, 75)).tolist())


def table(rows, batches):
  """Formats the rows as Markdown."""
  titles = ['', '%', 'seeds, %', 'MACs', *(f'time, {b}' for b in batches),
            *(f'ms, {b}' for b in batches)]
  lines = [titles, ['---'] * len(titles)]
  for row in rows:
    lines.append([row['label'], f'{100 * row["accuracy"]:.2f}',
                  _spread(row['accuracies']), f'{row["macs_ratio"]:.3f}',
                  *(f'{row[f"time_ratio_{b}"]:.2f}' for b in batches),
                  *(f'{row[f"ms_{b}"]:.1f}' for b in batches)])
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def _spread(accuracies):
  low, high = 100 * min(accuracies), 100 * max(accuracies)
  return f'{low:.2f} to {high:.2f}' if len(accuracies) > 1 else ''


def draw(rows, batches):
  """Draws accuracy against time, a panel for each batch size; a `Figure`."""
  figure = Figure(figsize=(2 + 4 * len(batches), 4), layout='constrained')
  for axes, batch in zip(
      np.atleast_1d(figure.subplots(1, len(batches), sharey=True)), batches):
    for i, row in enumerate(rows):
      at = row[f'time_ratio_{batch}'], 100 * row['accuracy']
      axes.plot(*at, 'o' if i else '*', color=None if i else 'k',
                label=row['label'])
    axes.set(xlabel=f'measured time over that of {rows[0]["label"]}, batches '
                    f'of {batch}', xlim=(0, 1.2 * max(
                        row[f'time_ratio_{batch}'] for row in rows)))
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('test accuracy, %')
  figure.legend(*figure.axes[0].get_legend_handles_labels(),
                loc='outside right center', fontsize=8)
  return figure


def main(argv):
  try:
    rivals = list(map(rival_runs.parse, argv[1:]))
    batches = list(map(int, _BATCHES.value))
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
  orbax_manager.quiet_orbax()
  app.run(main)

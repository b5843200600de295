"""Tests promises on recorded outputs of runs:

  python benchmarks/guarantees.py --exits=runs/exits --policy=runs/policy \\
      --both=runs/both --output=runs/guarantees

Records the outputs of each run on its test images, once, and then draws
held-out images from them again and again. Prints, as rows of Markdown, in how
many draws the risk on all test images exceeds the risk asked for, and the MACs;
beside it, what thresholds without a promise do. Then it watches streams whose
second half is changed. Everything is written to OUTPUT/guarantees.json.
"""

import json
import os
import pathlib

from absl import app
from absl import flags
from ml_collections import config_dict
import numpy as np
from PIL import Image
from PIL import ImageFilter

import adavit_jax
from adavit_jax import data
from adavit_jax.exits import held_out
from adavit_jax.exits import threshold_search
from adavit_jax.inference import safe_thresholds
from adavit_jax.promise import candidates
from adavit_jax.promise import drift
from adavit_jax.promise import recorded as recorded_lib
from adavit_jax.promise import risks
from adavit_jax.promise import testing
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import saved_run

_NAMES = ('exits', 'policy', 'both')
_RUNS = {name: flags.DEFINE_string(name, None, f'Work directory: {text}.')
         for name, text in zip(_NAMES, (
             'exits', 'a policy', 'exits with a policy'))}
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for recorded outputs '
                              'and guarantees.json.', required=True)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Data directory, if it '
                                'moved.')
_DRAWS = flags.DEFINE_integer('draws', 500, 'Draws of held-out images.')
_NUMS = flags.DEFINE_list('nums', ['1000', '500', '5000'],
                          'Numbers of held-out images.')
_RISKS = flags.DEFINE_list('risks', ['0.005', '0.01', '0.02'], 'Risks.')
_STREAMS = flags.DEFINE_integer('streams', 200, 'Streams to watch.')
_CONFIDENCE = 0.95
_WITHOUT = 100  # draws without a promise
_CHANGES = ('blur1', 'blur3', 'noise', 'dark', 'inverted', 'upside down')


def _changed(images, change):
  """Images uint8 [n, S, S, C] as a change of the camera might show them."""
  rng = np.random.default_rng(0)
  if change.startswith('blur'):
    return np.stack([np.asarray(Image.fromarray(image).filter(
        ImageFilter.GaussianBlur(float(change[4:])))) for image in images])
  if change == 'noise':
    noise = rng.normal(scale=40, size=images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)
  return {'inverted': 255 - images, 'dark': images // 4,
          'upside down': images[:, ::-1]}[change]


def record(workdir, path, data_dir=None, change=None):
  """Returns (`Recorded`, labels) of a run's test images, from a file if any.

  Args:
    workdir: directory of the run.
    path: file to read, or to write if it does not exist.
    data_dir: data directory, if it moved.
    change: one of `_CHANGES`, of the first 2000 images; None for all of them
      as they are.
  """
  if not path.exists():
    clf = adavit_jax.load(workdir)
    with saved_run.Run(workdir) as run:
      config = config_dict.ConfigDict(run.find().info['config'])
    if data_dir is not None:
      config.data.data_dir = data_dir
    test = data.load(config.data, seed=config.seed).test
    rows = np.arange(len(test) if change is None else 2000)
    images = data.center(test.images(rows), clf.system.model.image_size)
    if change is not None:
      images = _changed(images, change)
    found = safe_thresholds.record(clf, images)
    np.savez(path, labels=test.labels[rows], **{
        name: np.asarray(value) for name, value in found._asdict().items()
        if value is not None})
  with np.load(path, allow_pickle=True) as file:
    arrays = dict(file)
  labels = arrays.pop('labels')
  for name in ('rule', 'knob'):
    arrays[name] = str(arrays[name]) if name in arrays else None
  arrays['full_macs'] = float(arrays['full_macs'])
  return recorded_lib.Recorded(**arrays), labels


def hardest(recorded, labels):
  """`Recorded` of the two classes that the full model gets wrong most often."""
  right = recorded.full == labels
  classes = np.unique(labels)
  worst = classes[np.argsort([right[labels == c].mean() for c in classes])[:2]]
  return recorded.take(np.flatnonzero(np.isin(labels, worst)))


def without_promise(recorded, labels, wanted):
  """The cheapest settings whose loss of accuracy on these images is a risk.

  For exits this is a free search on the same images, which overfits; eval.py
  cross-validates instead.

  Args:
    recorded: `Recorded` of the held-out images.
    labels: [n].
    wanted: risks.

  Returns:
    List with a `Setting` for each risk, or None if no setting meets it.
  """
  loss = risks.create('gap')
  losses = loss.of(recorded.prediction, recorded.full, labels)
  if len(losses) == 1:
    images = held_out.HeldOut(
        recorded.confidence[0], -losses[0], recorded.macs[0])
    frontier = threshold_search.frontier(images, 200)
    return [recorded_lib.Setting(0, threshold_search.search(
        images, frontier, threshold_search.at_least(-risk * recorded.num)))
            for risk in wanted]
  settings = candidates.in_known_order(recorded, 10)
  if settings is None:
    settings = candidates.frontier(recorded, losses)
  means = np.array([loss.of(recorded.outcome(s)[0], recorded.full, labels)
                    .mean() for s in settings])
  passed = [np.flatnonzero(means <= risk) for risk in wanted]
  return [settings[rows[-1]] if len(rows) else None for rows in passed]


def _truth(recorded, labels, setting):
  """Risks and the share of MACs on all images."""
  prediction, macs = recorded.outcome(setting)
  found = {kind: float(risks.create(kind).of(
      prediction, recorded.full, labels).mean()) for kind in risks.CLASSES}
  return dict(found, macs=float(macs.mean()) / recorded.full_macs)


def _row(recorded, labels, kind, risk, num, found):
  """Statistics of settings of all draws; None where nothing passed."""
  true = [_truth(recorded, labels, s) for s in found if s is not None]
  measured = kind if kind in risks.CLASSES else 'gap'
  shares = [t['macs'] for t in true] + [1.] * (len(found) - len(true))
  return dict(
      kind=kind, risk=risk, num=num, draws=len(found),
      broken=sum(t[measured] > risk for t in true) / len(found),
      passed=len(true) / len(found), macs=float(np.mean(shares)),
      risk_mean=float(np.mean([t[measured] for t in true] or [0.])),
      risk_most=float(np.max([t[measured] for t in true] or [0.])))


def simulate(recorded, labels, num, draws, wanted):
  """Returns rows for held-out images drawn without replacement."""
  found = {}
  for seed in range(draws):
    drawn = np.random.default_rng(seed).choice(
        recorded.num, num, replace=False)
    part, known = recorded.take(drawn), labels[drawn]
    for kind in risks.CLASSES:
      loss = risks.create(kind)
      order = testing.settings(
          part, loss, labels=known, num_classes=10, seed=seed)
      for risk in wanted:
        found.setdefault((kind, risk), []).append(testing.test(
            part, loss, risk, _CONFIDENCE, *order, labels=known).setting)
    if seed >= _WITHOUT:
      continue
    for risk, setting in zip(wanted, without_promise(part, known, wanted)):
      found.setdefault(('no promise', risk), []).append(setting)
  return [_row(recorded, labels, kind, risk, num, settings)
          for (kind, risk), settings in found.items()]


def watch(recorded, changed, risk, num, streams):
  """Watches streams of 2000 test images, the second half of them changed.

  Every image is checked. With a share s, an alarm takes 1 / s times as many.

  Args:
    recorded: `Recorded` of the test images.
    changed: {change: `Recorded` of changed images}.
    risk: disagreement that is promised, and watched.
    num: number of held-out images.
    streams: number of draws of held-out images, and of streams.

  Returns:
    Dict; images are counted from the change on.
  """
  loss, alarms = risks.create('disagreement'), 0
  found = {change: [] for change in changed}
  true = {change: [] for change in ('none', *changed)}
  for seed in range(streams):
    rng = np.random.default_rng(seed)
    drawn = rng.choice(recorded.num, num, replace=False)
    setting = testing.run(recorded.take(drawn), loss, risk, _CONFIDENCE,
                          num_classes=10, seed=seed).setting or recorded.never
    losses = lambda x: loss.of(x.outcome(setting)[0], x.full)
    calm = losses(recorded)
    true['none'].append(calm.mean())
    before, after = rng.choice(calm, 1000), rng.choice(calm, 1000)
    limit = drift.LowerLimit(risk, _CONFIDENCE)
    alarms += limit.update(np.append(before, after)) is not None
    for change, other in changed.items():
      limit = drift.LowerLimit(risk, _CONFIDENCE)
      limit.update(before)
      odd = losses(other)
      true[change].append(odd.mean())
      found[change].append(limit.update(rng.choice(odd, 1000)))
  result = dict(risk=risk, num=num, streams=streams, alarms=alarms,
                disagreement=float(np.mean(true['none'])), changed={})
  for change, delays in found.items():
    seen = [delay for delay in delays if delay is not None]
    result['changed'][change] = dict(
        disagreement=float(np.mean(true[change])), alarms=len(seen),
        images=np.percentile(seen, [10, 50, 90]).tolist() if seen else None)
  return result


def _print(name, rows):
  print(f'\n{name}\n\n| loss | risk | images | draws | risk exceeded | passed '
        f'| MACs | mean risk | largest |\n|{"---|" * 9}')
  for r in rows:
    print(f"| {r['kind']} | {r['risk']:.1%} | {r['num']} | {r['draws']} | "
          f"{r['broken']:.1%} | {r['passed']:.1%} | {r['macs']:.3f} | "
          f"{r['risk_mean']:.2%} | {r['risk_most']:.2%} |", flush=True)


def main(_):
  output = pathlib.Path(os.path.expanduser(_OUTPUT.value))
  output.mkdir(parents=True, exist_ok=True)
  wanted, result = [float(r) for r in _RISKS.value], {}
  for name in _NAMES:
    if _RUNS[name].value is None:
      continue
    args = _RUNS[name].value, output / f'{name}.npz', _DATA_DIR.value
    recorded, labels = record(*args)
    exits = [{'accuracy': float((x == labels).mean())}
             for x in recorded.prediction[0]]
    result[name] = dict(
        full_accuracy=float((recorded.full == labels).mean()), exits=exits,
        rows=[])
    for num in map(int, _NUMS.value):
      # Fewer draws of many images: they vary less and take longer.
      draws = _DRAWS.value if num == 1000 else _DRAWS.value // 5
      if not draws:
        continue
      rows = simulate(recorded, labels, num, draws, wanted)
      _print(f'{name}, {num} images', rows)
      result[name]['rows'] += rows
      _write(output, result)
    changed = {c: record(args[0], output / f'{name}_{c}.npz', args[2], c)[0]
               for c in _CHANGES}
    changed['two hardest classes'] = hardest(recorded, labels)
    watched = [watch(recorded, changed, risk, 1000, _STREAMS.value)
               for risk in wanted[1:]]
    result[name]['watch'] = watched
    print(json.dumps(watched, indent=1), flush=True)
    _write(output, result)


def _write(output, result):
  (output / 'guarantees.json').write_text(json.dumps(result, indent=1))


if __name__ == '__main__':
  orbax_manager.quiet_orbax()
  app.run(main)

"""Measures what merging tokens saves, and what it costs in accuracy:

  python benchmarks/merging.py --merges=8,13,16 --every=1,2,4 --output=FILE

This compares a ViT that merges tokens with the same ViT that does not: time,
MACs and compile time, from normalized images to logits. `every` 1 is the
published form; n merges only before every n-th encoder. Ratios are to the
unmerged model timed in the same rounds.

  python benchmarks/merging.py --weights=FILE --data=DIR --classes=0,217,... \\
      --merges=2,4,6,8,10,12,13,14,16 --sizes=160,128 --keeps=0.9,0.7,0.5 \\
      --output=FILE

With weights and a folder of images for each class, the accuracy is added: among
all classes of the model (`accuracy`), and among those of the folders
(`accuracy_among`). Two other ways to save are measured beside it: smaller
images, and selection of tokens (`class_attention`). Rows go to FILE.json, a
picture of accuracy against time to FILE.png.
"""

import functools
import json

from absl import app
from absl import flags
from absl import logging
import jax
from matplotlib.figure import Figure
import numpy as np

import adavit_jax
from adavit_jax import cost
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.runtime import modes
from adavit_jax import errors
import class_attention
import class_folders
import timing

_MODEL = flags.DEFINE_string('model', 'vit_tiny_patch16_224', 'Name of a ViT.')
_MERGES = flags.DEFINE_list('merges', ['8', '13'], 'Values of `merge`.')
_EVERY = flags.DEFINE_list('every', ['1', '4'], 'Values of `merge_every`.')
_SCHEDULE = flags.DEFINE_string('schedule', 'constant',
                                'Value of `merge_schedule`.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Images in a batch.', lower_bound=1)
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed rounds.', lower_bound=1)
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Compute dtype.')
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Files to write, without .json and .png.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'File of weights.')
_DATA = flags.DEFINE_string(
    'data', None, 'Directory with a folder of images for each class.')
_CLASSES = flags.DEFINE_list(
    'classes', [], 'Index of the class of each folder, in the order of their '
    'names. Default: 0, 1, 2 and so on.')
_MOST = flags.DEFINE_integer(
    'most', None, 'Images of each class at most. Default: all.', lower_bound=1)
_SIZES = flags.DEFINE_list('sizes', [], 'Sides of smaller images in pixels.')
_KEEPS = flags.DEFINE_list(
    'keeps', [], 'Shares of the patches that each selection keeps.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    _run_all()
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error


def _run_all():
  if bool(_WEIGHTS.value) != bool(_DATA.value):
    raise ValueError(f'--weights={_WEIGHTS.value} and --data={_DATA.value} go '
                     f'together; give both or none')
  variants = _variants()
  images = _Images() if _DATA.value else None
  rows = []
  _write(rows)  # fails before anything is timed if the file is not writable
  print(timing.header() + (
      '' if images is None else '  accuracy among folders'))
  for variant in variants:
    row = _row(variant, variants[0], images)
    rows.append(row)
    _write(rows)
    print(timing.format_row(row) + ('' if images is None else (
        f"{row['accuracy']:10.4f} {row['accuracy_among']:13.4f}")), flush=True)
  if images is not None and _OUTPUT.value:
    draw(rows).savefig(f'{_OUTPUT.value}.png', dpi=130)


class _Variant:
  """A way to run the model: `logits` of (params, images), and its MACs."""

  def __init__(self, kind, label, run, macs, model):
    self.kind, self.label, self.run = kind, label, run
    self.macs, self.model = macs, model

  @functools.cached_property
  def params(self):
    """The parameters, folded."""
    return models.fold(self.model, adavit_jax.init_params(
        self.model, jax.random.key(0)))

  @functools.cached_property
  def program(self):
    """(compiled program, what `timing.compile_jit` measured)."""
    s, c = self.model.image_size, self.model.channels
    images = jax.ShapeDtypeStruct((_BATCH.value, s, s, c), np.float32)
    return timing.compile_jit(jax.jit(self.run), self.params, images)


def _variants():
  """The variants to measure, the unmerged model first."""
  create = functools.partial(
      adavit_jax.create, _MODEL.value, dtype=_DTYPE.value,
      weights=_WEIGHTS.value or '')
  plain = create()
  found = [_of_model('unmerged', 'unmerged', plain)]
  for every in _numbers('every', _EVERY.value, int):
    for merge in _numbers('merges', _MERGES.value, int):
      found.append(_of_model(
          f'merging, every {every}' if every > 1 else 'merging',
          f'merge {merge}, every {every}',
          create(merge=merge, merge_every=every,
                 merge_schedule=_SCHEDULE.value)))
  for size in _numbers('sizes', _SIZES.value, int):
    found.append(_of_model('smaller images', f'{size} px',
                           create(image_size=size)))
  for keep in _numbers('keeps', _KEEPS.value, float):
    if plain.num_prefix != 1 or plain.depth <= class_attention.PLACES[-1]:
      raise ValueError(f'--keeps={",".join(_KEEPS.value)} needs a model with '
                       f'one class token and more than '
                       f'{class_attention.PLACES[-1]} encoders, not '
                       f'{_MODEL.value!r}')
    found.append(_Variant(
        'selection', f'keep {keep} twice',
        functools.partial(_selected, plain, keep),
        class_attention.macs(plain, keep), plain))
  return found


def _numbers(flag, texts, kind):
  """Parses the positive numbers of a flag; raises a ValueError."""
  try:
    numbers = [kind(text) for text in texts]
  except ValueError:
    numbers = [0]
  if any(n <= 0 for n in numbers):
    raise ValueError(f'--{flag}={",".join(texts)} must be positive numbers')
  return numbers


def _of_model(kind, label, model):
  every = fixed.all_layers(plan.num_layers(model))
  macs = cost.of(model).dense - cost.left_out(model, every)
  return _Variant(kind, label, lambda params, x: (
      modes.dense(model, params, x).total), macs, model)


def _selected(model, keep, params, images):
  return class_attention.logits(model, params, images, keep)


class _Images:
  """Labeled images, decoded once for each size."""

  def __init__(self):
    self.files = class_folders.files(_DATA.value, _MOST.value)
    num = self.files[-1][1] + 1
    try:
      self.classes = [int(c) for c in _CLASSES.value] or list(range(num))
    except ValueError:
      self.classes = []
    if len(self.classes) != num or min(self.classes) < 0:
      raise ValueError(f'--classes={",".join(_CLASSES.value)} must be the '
                       f'index of the class of each of the {num} folders of '
                       f'{_DATA.value}')
    self.preprocessing = weights.preprocessing(_WEIGHTS.value, _MODEL.value)
    self.of_size = functools.lru_cache(maxsize=None)(
        lambda size: class_folders.read(self.files, size))

  def accuracies(self, variant):
    """See `class_folders.accuracies`."""
    program, _ = variant.program
    return class_folders.accuracies(class_folders.logits(
        lambda x: program(variant.params, x),
        self.of_size(variant.model.image_size), _BATCH.value,
        self.preprocessing), self.files, self.classes)


def _row(variant, plain, images):
  """Measures a variant against the unmerged model; a dict."""
  functions = {}
  for v in {id(v): v for v in (plain, variant)}.values():
    s, c = v.model.image_size, v.model.channels
    x = jax.random.normal(jax.random.key(2), (_BATCH.value, s, s, c))
    functions[v.label] = functools.partial(
        lambda program, params, x, i: program(params, x), v.program[0],
        v.params, x)
  times = timing.alternate(functions, _REPEATS.value)
  row = timing.row(
      _MODEL.value, variant.label, _BATCH.value, 1, times[variant.label],
      times[plain.label], variant.macs / plain.macs, dtype=_DTYPE.value,
      **variant.program[1])
  row |= dict(kind=variant.kind, macs=int(variant.macs))
  return row if images is None else row | images.accuracies(variant)


def _write(rows):
  if _OUTPUT.value:
    with open(f'{_OUTPUT.value}.json', 'w', encoding='utf-8') as f:
      json.dump(rows, f, indent=1)


def draw(rows):
  """Draws accuracy against time, a curve for each way to save; a `Figure`."""
  figure = Figure(figsize=(10, 4), layout='constrained')
  plain, *others = rows
  for axes, key, title in zip(
      figure.subplots(1, 2), ('accuracy', 'accuracy_among'),
      ('among all classes of the model', 'among the classes of the folders')):
    for kind in dict.fromkeys(row['kind'] for row in others):
      points = sorted((row['time_ratio'], 100 * row[key]) for row in others
                      if row['kind'] == kind)
      axes.plot(*zip(*points), 'o-', label=kind)
    axes.plot(1, 100 * plain[key], 'k*', markersize=10, label='all tokens')
    axes.set(xlabel="measured time as a share of the unmerged model's",
             ylabel='accuracy, %', title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  return figure


if __name__ == '__main__':
  app.run(main)

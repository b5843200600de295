"""Classifies images and shows what they cost:

  python predict.py IMAGE... --model=digits-policy --output=picture.png

Prints a line for each image. The picture has the layers that ran on each of
them and the exit where it left.
"""

import os
import time

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np
import scipy

import adavit_jax
from adavit_jax import errors
from adavit_jax import paths
from adavit_jax.exits import confidence
from adavit_jax.report import layer_picture
from adavit_jax.report import table
from adavit_jax.runs import orbax_manager

_MODEL = flags.DEFINE_string(
    'model', None, 'Work directory of a run, or what else adavit_jax.load '
    'takes, such as the name of a model of the package.', required=True)
_THRESHOLD = flags.DEFINE_list(
    'threshold', None, "The policy's threshold, or those of the exits, as in "
    'eval.py. Default: those that were saved with the model.')
_OUTPUT = flags.DEFINE_string('output', None, 'PNG file to draw the images to.')
_NUM_CALLS = 5  # the time of an image is the median over these calls


def main(argv):
  try:
    if not argv[1:]:
      raise ValueError('no image is given: python predict.py IMAGE... '
                       '--model=NAME')
    output = _OUTPUT.value
    if output is not None:
      if not output.endswith('.png'):
        raise ValueError(f'--output={output} must end in .png')
      output = paths.to_write(output, '--output')
    clf = adavit_jax.load(_MODEL.value)
    _set(clf, confidence.parse_thresholds(_THRESHOLD.value))
    images = [clf.read(path) for path in argv[1:]]
    rows = [_row(clf, path, image) for path, image in zip(argv[1:], images)]
    print(f'\n{_MODEL.value} on {jax.devices()[0].device_kind}, one image at a '
          f'time, median of {_NUM_CALLS} calls\n')
    print(table.format_rows([(row['path'], row) for row in rows], _COLUMNS))
    if output is not None:
      layer_picture.draw(
          [_drawn(row) for row in rows], clf.system.model, output)
      print(f'\nwrote {output}')
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error


def _set(clf, threshold):
  """Sets the thresholds, if they are given."""
  if threshold is None:
    return
  if isinstance(clf, adavit_jax.CascadeClassifier):
    clf.thresholds = threshold
    return
  if clf.actions is not None or clf.knob.name != 'threshold':
    raise ValueError(f'--threshold={threshold} needs policy networks or exits, '
                     f'but {_MODEL.value} has none; leave it out')
  clf.threshold = threshold


def _row(clf, path, image):
  """Runs one image: dict of path, image, answer, used, macs, share, ms, exit.
  """
  prediction, seconds = clf(image[None]), []  # compiled here
  for _ in range(_NUM_CALLS):
    start = time.perf_counter()
    clf(image[None])
    seconds.append(time.perf_counter() - start)
  row = dict(
      path=os.path.basename(path), image=image, answer=_answer(clf, prediction),
      macs=int(prediction.macs[0]), ms=1000 * float(np.median(seconds)),
      share=float(prediction.macs[0]) / int(clf.system.plain_cost.dense))
  if isinstance(clf, adavit_jax.CascadeClassifier):
    exits, index = clf.system.exits, int(prediction.exit[0])
    actions = _decided(clf, image)
    exit = exits[index].place if index + 1 < len(exits) else None
    used = f'exit {index} of 0 to {len(exits) - 1}'
  else:
    actions, exit = _first(prediction.actions), None
    used = f'{int(actions.num_kept)} of {actions.keep.size} layers'
  return dict(row, used=used, exit=exit, layers=layer_picture.layers_of(
      clf.system.model, actions, exit))


def _decided(clf, image):
  """`Actions` [L1], [L2] of a model with exits; None if all layers run."""
  system, after = clf.system, clf.system.after(clf.phase)
  if after.decider != 'policy':
    return after.actions if after.decider == 'mask' else None
  images = system.normalize(image[None])
  z1 = system.before_policy(clf.params, images)
  return _first(system.greedy(
      clf.params, z1, images, clf.params.get('threshold')))


def _first(tree):
  """The first image of a tree of arrays."""
  return jax.tree.map(lambda x: np.asarray(x)[0], tree)


def _answer(clf, prediction):
  """The class and its probability, or the number of a regression."""
  label, = prediction.labels
  if clf.system.target is not None:
    return f'{label:.3g} {clf.system.target.unit}'
  name = clf.class_names[label] if clf.class_names else f'class {label}'
  probability = scipy.special.softmax(prediction.logits[0])[label]
  return f'{name}, {100 * probability:.1f} %'


_COLUMNS = (
    ('answer', lambda row: row['answer']),
    ('used', lambda row: row['used']),
    table.MACS,
    ('of dense', lambda row: f"{row['share']:.3f}"),
    ('ms', lambda row: f"{row['ms']:.2f}"),
)


def _drawn(row):
  return layer_picture.Row(
      row['image'], row['answer'],
      f"{row['used']} · {row['share']:.2f} of the MACs · {row['ms']:.2f} ms",
      row['layers'], row['exit'])


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  orbax_manager.quiet_orbax()
  app.run(main)

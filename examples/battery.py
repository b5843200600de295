"""A battery knob: the emptier the battery, the earlier images leave.

  python examples/battery.py --data_dir=DIR

A stream of test images runs until a simulated battery is empty. Its charge sets
the entropy threshold of all exits during the stream (RAViT, section VI), from
`--at_full` to `--at_empty`. Every MAC takes the same energy; the battery holds
that of `--images` images that run to the last exit. Prints what happened in
each quarter of the charge, and the totals beside the two thresholds alone.
"""

from absl import app
from absl import flags
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.exits import confidence

_MODEL = flags.DEFINE_string('model', 'cifar10-exits', 'Run with exits, as '
                             '`adavit_jax.load` takes it.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Data directory, if it '
                                'moved.')
_IMAGES = flags.DEFINE_integer('images', 2000, 'Full images that the battery '
                               'lasts.', lower_bound=1)
_AT_FULL = flags.DEFINE_float('at_full', 0.2, 'Entropy below which an image '
                              'leaves while the battery is full, nats.')
_AT_EMPTY = flags.DEFINE_float('at_empty', 1.2, 'The same, when it is empty.')
_QUARTERS = 4


def threshold(charge, at_full, at_empty):
  """Returns the threshold of exits, the negated entropy, at a charge in [0, 1].
  """
  return -(charge * at_full + (1 - charge) * at_empty)


def drain(clf, images, labels, capacity, knob):
  """Classifies a stream until the battery is empty.

  Images that were read but not answered take nothing from the battery; a stream
  holds at most 16 times the largest batch of them.

  Args:
    clf: `CascadeClassifier`; its thresholds change.
    images: iterable of uint8 [S, S, C].
    labels: iterable of classes.
    capacity: of the battery, in MACs.
    knob: function from the charge, 1 to 0, to the thresholds of the exits.

  Returns:
    (charge when it was answered [n], whether it is right [n], MACs [n]).
  """
  left, rows = capacity, []
  clf.thresholds = knob(1.)
  for prediction, label in zip(clf.stream(images), labels):
    rows.append((left / capacity, prediction.labels == label, prediction.macs))
    left -= prediction.macs
    if left <= 0:
      break
    clf.thresholds = knob(left / capacity)  # of the stages that start from now
  return tuple(map(np.array, zip(*rows)))


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  # The smaller the batches of a stream, the sooner a threshold shows.
  clf = adavit_jax.load(_MODEL.value, rule='entropy', max_batch_size=16)
  config = clf.system.config.copy_and_resolve_references()
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  test = data.load(config.data, seed=config.seed).test
  images = data.center(test.images(np.arange(len(test))),
                       clf.system.model.image_size)
  clf.warm_up()
  clf.thresholds = confidence.NEVER  # those of the model may let it leave early
  capacity = _IMAGES.value * clf(images[:1]).macs[0]
  knobs = {
      'by charge': lambda charge: threshold(
          charge, _AT_FULL.value, _AT_EMPTY.value),
      f'{_AT_FULL.value} nats': lambda charge: -_AT_FULL.value,
      f'{_AT_EMPTY.value} nats': lambda charge: -_AT_EMPTY.value}
  found = {name: drain(clf, images, test.labels, capacity, knob)
           for name, knob in knobs.items()}
  print('| entropy threshold | charge % | images | accuracy % | MMACs each |\n'
        '|' + '---|' * 5)
  charge, right, macs = found['by charge']
  for i in range(_QUARTERS, 0, -1):
    low, high = (i - 1) / _QUARTERS, i / _QUARTERS
    _row('by charge', f'{high:.0%} to {low:.0%}'.replace('%', ''),
         *(x[(charge > low) & (charge <= high)] for x in (right, macs)))
  for name, (_, right, macs) in found.items():
    _row(name, '100 to 0', right, macs)


def _row(name, charge, right, macs):
  means = '- | -'  # the images ended before, or one took more than a quarter
  if len(right):
    means = f'{100 * right.mean():.1f} | {macs.mean() / 1e6:.2f}'
  print(f'| {name} | {charge} | {len(right)} | {means} |')


if __name__ == '__main__':
  app.run(main)

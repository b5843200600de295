"""The tables of papers that `tables.py` trains: their runs and their figures.

A new table is a `Recipe`, if none fits, and a `Table` in `TABLES`. Figures are
copied from the papers' texts. Where a paper shows them in a picture alone, they
are left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from adavit_jax.models.exit_heads import HEADS


class Recipe(NamedTuple):
  """How the runs of one or more tables are trained.

  Attributes:
    name: begins the names of files of results; no other recipe has it.
    config: a file of configs/.
    schedules: {name of a schedule: variant of the config}; '{run}' stands for
      the name of the run.
    fields: from the name of a run to {field of the config: value}.
    entropies: thresholds at which every run with several exits is evaluated; an
      image leaves at the first exit whose entropy, in nats, is below it.
    start: `Recipe` of the run that the others of its seed start from, in the
      schedules that it has; None to start with new parameters.
  """
  name: str
  config: str
  schedules: dict[str, str]
  fields: Callable[[str], dict[str, Any]] = lambda run: {}
  entropies: tuple[float, ...] = ()
  start: 'Recipe | None' = None


class Row(NamedTuple):
  """A row of a table, and the paper's figures in it; None if it has none.

  Attributes:
    run: name of the run that is trained for it.
    label: of the row.
    accuracy: test accuracy, %.
    flops: mean FLOPs of an image, in the unit of the table.
    percent: FLOPs as a share of the table's reference, %.
    entropy: threshold of all exits; None: no image leaves early.
    note: a sentence on the paper's figures.
  """
  run: str
  label: str
  accuracy: float | None = None
  flops: float | None = None
  percent: int | None = None
  entropy: float | None = None
  note: str = ''


class Table(NamedTuple):
  """A table.

  Attributes:
    title: what it shows.
    recipe: `Recipe` of its runs.
    rows: its `Row`s.
    reference: run whose FLOPs are 100 %; '' if the table has no such column.
    unit: of FLOPs, 'M' or 'G'.
    layout: 'rows' for one line for each row; 'map' for the accuracy and FLOPs
      of runs named ROW-COLUMN; 'heads' for those of the added exits of one run.
  """
  title: str
  recipe: Recipe
  rows: tuple[Row, ...]
  reference: str = ''
  unit: str = 'M'
  layout: str = 'rows'

  @property
  def runs(self):
    """Names of its runs, without repetition, in order."""
    return list(dict.fromkeys(row.run for row in self.rows))


def _layers(run):
  """'1-3' of RAViT: one encoder in the first branch, three in the second."""
  layers = tuple(map(int, run.split('-')))
  # By default, the first of several encoders cannot be dropped.
  return {'model.layers': layers,
          **({'model.num_fixed': 0} if sum(layers) == 1 else {})}


RAVIT_CIFAR10 = Recipe(
    'ravit_cifar10', 'configs/cifar10_ravit.py', {'cpu': 'cpu', 'full': ''},
    _layers, (0.05, 0.15))
RAVIT_TINY_IMAGENET = Recipe(
    'ravit_tiny_imagenet', 'configs/tiny_imagenet_ravit.py', {'full': ''},
    _layers, (0.15, 0.2, 0.25))
RAVIT_IMAGENET = Recipe(
    'ravit_imagenet', 'configs/imagenet_ravit.py', {'full': ''},
    _layers, (1.0, 1.5))

_HEADS_AT = tuple((depth, head) for depth in (2, 4, 6) for head in HEADS)
MULTI_EXIT_CIFAR10 = Recipe(
    'multi_exit_cifar10', 'configs/cifar10_exits.py',
    {'cpu': 'cpu_heads', 'full': ''}, lambda run: {'model.exits': _HEADS_AT},
    start=Recipe('vit_cifar10', 'configs/cifar10_policy.py', {'cpu': 'cpu'},
                 lambda run: {'phases': ('dense',)}))

TABLES = {
    # RAViT, table I. FLOPs are those of the encoders, by equations 2 to 4,
    # truncated to two decimals; shares are truncated.
    'ravit_cifar10': Table(
        'RAViT on CIFAR-10, table I', RAVIT_CIFAR10, (
            Row('0-3', '3-layer ViT', 82.3, 83.16, 75),
            Row('0-4', '4-layer ViT', 84.3, 110.88, 100),
            Row('0-5', '5-layer ViT', 85.3, 138.61, 125),
            Row('1-3', '1-3, no early exit', 84.9, 89.99, 81),
            Row('1-3', '1-3, entropy 0.05', 84.6, 80.81, 72, 0.05),
            Row('1-3', '1-3, entropy 0.15', 82.6, 67.72, 61, 0.15)),
        reference='0-4'),
    # RAViT, table II.
    'ravit_tiny_imagenet': Table(
        'RAViT on Tiny ImageNet, table II', RAVIT_TINY_IMAGENET, (
            Row('0-0-3', '3-layer ViT', 38.8, 11.52, 75),
            Row('0-0-4', '4-layer ViT', 41.0, 15.36, 100),
            Row('0-0-6', '6-layer ViT', 41.4, 23.04, 150),
            Row('2-0-3', '2-0-3, no early exit', 40.7, 12.00, 78),
            Row('2-0-3', '2-0-3, entropy 0.2', 40.4, 10.98, 71, 0.2),
            Row('2-0-3', '2-0-3, entropy 0.25', 39.1, 9.72, 63, 0.25)),
        reference='0-0-4', unit='G'),
    # RAViT, table III. 23.26 of 34.89 is 66.7 %, which is rounded here.
    'ravit_imagenet': Table(
        'RAViT on ImageNet, table III', RAVIT_IMAGENET, (
            Row('0-0-8', '8-layer ViT', 71.08, 23.26, 67),
            Row('0-0-10', '10-layer ViT', 72.80, 29.07, 83),
            Row('0-0-12', '12-layer ViT (ViT-B)', 73.36, 34.89, 100),
            Row('1-1-8', '1-1-8, no early exit', 73.25, 24.43, 70),
            Row('1-1-8', '1-1-8, entropy 1.0', 72.6, 22.84, 65, 1.0),
            Row('1-1-10', '1-1-10, no early exit', 73.38, 30.25, 81,
                note='The paper prints 81 % for 1-1-10, a misprint: 30.25 of '
                'its 34.89 GFLOPs are 87 %.'),
            Row('1-1-10', '1-1-10, entropy 1.5', 72.3, 27.23, 78, 1.5)),
        reference='0-0-12', unit='G'),
    # RAViT, figure 3. The printed text has no axes; it names cells up to 2-7.
    'ravit_cifar10_map': Table(
        'RAViT on CIFAR-10, figure 3: encoders at 16 pixels (rows) and at 32 '
        'pixels (columns)', RAVIT_CIFAR10,
        tuple(Row(f'{i}-{j}', f'{i}-{j}') for i in range(8) for j in range(8)
              if i + j), reference='0-4', layout='map'),
    # RAViT, figure 5, with three encoders at 64 pixels.
    'ravit_tiny_imagenet_map': Table(
        'RAViT on Tiny ImageNet, figure 5: encoders at 16 pixels (rows) and at '
        '32 pixels (columns), three at 64 pixels', RAVIT_TINY_IMAGENET,
        tuple(Row(f'{i}-{j}-3', f'{i}-{j}-3') for i in range(6)
              for j in range(6)), reference='0-0-4', unit='G', layout='map'),
    # Multi-Exit ViT: seven heads at three depths. Its text has no figures.
    'multi_exit_cifar10': Table(
        'Multi-Exit ViT on CIFAR-10: heads after 2, 4 and 6 encoders',
        MULTI_EXIT_CIFAR10, (Row('heads', 'heads'),), layout='heads'),
}

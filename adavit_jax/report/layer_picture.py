"""Draws which layers of a model ran on each of a few images."""

from typing import NamedTuple

import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.report import pictures

ALWAYS, RAN, DROPPED, AFTER = range(4)  # what became of a layer
_LABELS = ('always runs', 'ran', 'dropped', 'after the exit')
_COLORS = ('0.55', 'C0', 'white', 'white')
_EDGES = ('0.55', 'C0', '0.6', '0.85')


class Row(NamedTuple):
  """One image of a picture.

  Attributes:
    image: uint8 [S, S, C].
    title: a few words, in large letters.
    text: a line below it.
    layers: `Actions` of what became of each layer, see `layers_of`.
    exit: place of the exit where the image left; None for the last one.
  """
  image: np.ndarray
  title: str
  text: str
  layers: Actions
  exit: int | None = None


def layers_of(model, actions=None, exit=None):
  """Returns what became of every layer, also of those that always run.

  Args:
    model: a `Backbone`.
    actions: `Actions` [L1], [L2] of one image; None for all layers.
    exit: place of the exit where it left; None for the last one.

  Returns:
    `Actions` of int arrays, `ALWAYS`, `RAN`, `DROPPED` or `AFTER` for each MSA
    and MLP layer in the order of the plan.
  """
  stop = plan.num_encoders(model) if exit is None else exit
  states = []
  for kind, encoders in enumerate(_encoders(model)):
    state = np.full(len(encoders), RAN)
    if actions is not None:
      keep = np.asarray(actions[kind])
      first = len(state) - len(keep)
      state[:first] = ALWAYS
      state[first:][keep == 0] = DROPPED
    state[encoders >= stop] = AFTER
    states.append(state)
  return Actions(*states)


def draw(rows, model, path):
  """Draws images, each beside a map of the layers that it took.

  Args:
    rows: list of `Row`.
    model: the `Backbone` that ran.
    path: path of the PNG file.
  """
  num, encoders = plan.num_encoders(model), _encoders(model)
  figure = pictures.new_figure(3.2 + max(3, 0.42 * num), 0.4 + 1.25 * len(rows))
  grid = figure.subplots(len(rows), 2, squeeze=False,
                         width_ratios=(1, max(3, 0.42 * num)))
  seen = sorted({int(x) for row in rows for x in np.concatenate(row.layers)})
  for (left, right), row in zip(grid, rows):
    left.imshow(row.image.squeeze(), cmap='gray')
    left.axis('off')
    _map(right, row, encoders, num)
  grid[-1, 1].set_xlabel('encoder', fontsize=8)
  handles = [_patch(0, 0, 1, state) for state in seen]
  figure.legend(handles, [_LABELS[state] for state in seen], fontsize=8,
                ncols=len(seen), loc='outside lower right', frameon=False)
  pictures.save(figure, path)


def _encoders(model):
  """Index of the encoder of every layer, `Actions` of int arrays."""
  return plan.layer_encoders(model.clone(num_fixed=0))


def _map(axes, row, encoders, num):
  """Draws one cell for each layer: columns are encoders, MSA above MLP."""
  for y, (where, states) in enumerate(zip(encoders, row.layers)):
    for encoder in range(num):
      here = states[where == encoder]
      for i, state in enumerate(here):
        axes.add_patch(_patch(
            encoder + 0.08 + 0.84 * i / len(here), y, 0.84 / len(here), state))
  if row.exit is not None:
    axes.axvline(row.exit, -0.05, 1.05, color='C3', linewidth=2, clip_on=False)
  axes.set(xlim=(0, num), ylim=(2, 0), xticks=np.arange(num) + 0.5,
           xticklabels=range(1, num + 1), yticks=(0.5, 1.5),
           yticklabels=('MSA', 'MLP'))
  axes.set_title(row.title, loc='left', fontsize=11, fontweight='bold',
                 parse_math=False)
  axes.set_title(row.text, loc='right', fontsize=8, parse_math=False)
  axes.tick_params(length=0, labelsize=7)
  axes.spines[:].set_visible(False)


def _patch(x, y, width, state):
  from matplotlib.patches import Rectangle
  return Rectangle((x, y + 0.08), width, 0.84, facecolor=_COLORS[state],
                   edgecolor=_EDGES[state],
                   linestyle=':' if state == AFTER else '-')

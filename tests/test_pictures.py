"""Pictures of a report: what is drawn where."""

from adavit_jax import data
from adavit_jax.models.actions import Actions
from adavit_jax.report import pictures
import numpy as np


def test_easy_images_keep_the_fewest_layers(monkeypatch):
  figures = []
  monkeypatch.setattr(pictures, 'save', lambda *args: figures.append(args[0]))
  kept = np.array([3, 0, 6, 2, 5, 1, 6, 4])
  msa = (np.arange(4) < kept[:, None] - 2).astype(np.float32)
  mlp = (np.arange(2) < kept[:, None]).astype(np.float32)
  labels = np.arange(8) % 2
  split = data.ArraySplit(np.zeros((8, 4, 4, 1), np.uint8), labels)
  pictures.easy_and_hard(
      split, Actions(msa, mlp), ('ant', 'cat'), labels, '')
  (fewest, most), = (figure.subfigs for figure in figures)
  for part, title, want in (
      (fewest, 'fewest', ['0 + 0', '0 + 1', '0 + 2', '1 + 2']),
      (most, 'most', ['2 + 2', '3 + 2', '4 + 2', '4 + 2'])):
    assert part.get_suptitle() == f'{title} layers kept, MSA + MLP'
    cells = [axes.get_title().split(': ') for axes in part.axes]
    assert [numbers for _, numbers in cells] == want


def test_bars_of_kinds_that_differ_in_number(monkeypatch):
  figures = []
  monkeypatch.setattr(pictures, 'save', lambda *args: figures.append(args[0]))
  rates = dict(msa=[0.25], mlp=[1., 0.5, 0.75])
  encoders = Actions(np.array([2]), np.array([2, 3, 6]))
  pictures.keep_rates(rates, encoders, '')
  axes, = figures[0].axes
  bars = {c.get_label(): [(b.get_x() + b.get_width() / 2, b.get_height())
                          for b in c] for c in axes.containers}
  want = dict(MSA=[(2.8, 0.25)], MLP=[(3.2, 1.), (4.2, 0.5), (7.2, 0.75)])
  for kind, points in want.items():
    np.testing.assert_allclose(bars[kind], points)
  np.testing.assert_array_equal(axes.get_xticks(), [3, 4, 7])

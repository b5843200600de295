"""Pictures of a report: what is drawn where."""

from adavit_jax import data
from adavit_jax.report import pictures
import numpy as np


def test_easy_images_keep_the_fewest_layers(monkeypatch):
  figures = []
  monkeypatch.setattr(pictures, '_save', lambda *args: figures.append(args[0]))
  kept = np.array([3, 0, 6, 2, 5, 1, 6, 4])
  keep = np.float32(np.arange(6) < kept[:, None])
  labels = np.arange(8) % 2
  split = data.ArraySplit(np.zeros((8, 4, 4, 1), np.uint8), labels)
  pictures.easy_and_hard(split, keep, ('ant', 'cat'), labels, '')
  (fewest, most), = (figure.subfigs for figure in figures)
  for part, title, want in ((fewest, 'fewest layers kept', [0, 1, 2, 3]),
                            (most, 'most layers kept', [4, 5, 6, 6])):
    assert part.get_suptitle() == title
    cells = [axes.get_title().split(': ') for axes in part.axes]
    assert [int(number) for _, number in cells] == want

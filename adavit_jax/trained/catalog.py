"""Finds the files of the trained models in this package."""

import pathlib

from adavit_jax.runs import run_file

_FOLDER = pathlib.Path(__file__).parent


def names():
  """Returns the sorted list of their names."""
  return sorted(path.stem for path in _FOLDER.glob(f'*{run_file.SUFFIX}'))


def path(name):
  """Returns the path of the file of one of `names`."""
  return _FOLDER / f'{name}{run_file.SUFFIX}'


def pretrained():
  """Lists the models of the package, which `adavit_jax.load` takes by name.

  Returns:
    {name: card}. A card is a dict: data, recipe (the commands that trained it),
    commit, license, accuracy, macs (mean per image) and macs_ratio (over the
    model with all layers) on the num_test test images, full_accuracy (with all
    layers, without early exits), and settings, with the thresholds that these
    hold for. `benchmarks/model_card.py` measures them.
  """
  return {name: run_file.RunFile(path(name)).card for name in names()}

"""Commands of this project: their flags, and what they would train."""

import os
import pathlib
import sys
import types

from adavit_jax import data
from adavit_jax.runs import checks
from adavit_jax.train import config as config_lib
from adavit_jax.train import phases
from adavit_jax.train import system as system_lib
import scripts
import tiny

# Arguments that are no flags.
_POSITIONAL = {'predict.py': (['image.png'],),
               'adavit_jax/data/pack.py': (['SOURCE', 'DEST'], ['DEST']),
               'adavit_jax/data/tiny_imagenet.py': (['DIR'],),
               'benchmarks/tables.py': (
                   ['ravit_cifar10'], ['ravit_cifar10_map'], ['tau'])}


def parse(argv, monkeypatch):
  """The flags of a command as its script reads them, apart from others'."""
  monkeypatch.chdir(tiny.ROOT)  # where configs/ is
  monkeypatch.setattr(sys, 'argv', list(argv))  # config_flags looks there
  monkeypatch.setattr(os, 'environ', dict(os.environ))  # topology sets some
  with scripts.own_flags(pathlib.Path(argv[0]).parent) as own:
    tiny.load(argv[0])
  rest = own(list(argv))
  assert rest[1:] in _POSITIONAL.get(argv[0], ([],)), (
      f'{rest[1:]} are no flags')
  return own


def check_trains(config):
  """Checks a config as train.py would, but for what depends on data.

  Returns:
    Its `System`.
  """
  config = config.copy_and_resolve_references()
  config_lib.check(config)
  name = config.data.name
  regression = name == 'rotated_digits'
  channels = 1 if 'digit' in name else 3
  system = system_lib.create(config, types.SimpleNamespace(
      num_classes=0 if regression else 10, channels=channels,
      mean=(.5,) * channels, std=(.5,) * channels,
      target=data.Target(0., 1., 'degrees') if regression else None))
  phases.check(system)
  checks.both_heads(config, system)
  checks.budget(config, system)
  return system

"""The example of docs/extending.md."""

import pathlib
import re
import sys

from adavit_jax import models
from adavit_jax.exits import confidence
from adavit_jax.models import registry
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.train import config as config_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
import tiny


@pytest.fixture
def blocks(tmp_path, monkeypatch):
  """The Python of the page; its first block is the module `mine`."""
  text = (pathlib.Path(tiny.ROOT) / 'docs' / 'extending.md').read_text()
  found = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  (tmp_path / 'mine.py').write_text(found[0])
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(registry, '_MODELS', dict(registry._MODELS))
  yield found
  sys.modules.pop('mine', None)


@pytest.mark.nightly
def test_the_example_runs_and_trains(blocks, steps, tmp_path):
  exec(compile(blocks[1], 'extending.md', 'exec'), {})
  config = tiny.get_config()
  for field in ('patch_size', 'width', 'depth'):
    config.model[field] = None
  config.model.name, config.model.module = 'two_grids_8', 'mine'
  config.phases = ('dense',)
  config.dense.update(steps=2, nested=0., mask_weight=0.)  # compiles faster
  workdir = str(tmp_path / 'run')
  trainer = loop.Trainer(config, workdir, tiny.dataset())
  states.check_step(trainer.system, 'dense')
  trainer.train()
  # As another process finds it.
  registry._MODELS.pop('two_grids_8')
  del sys.modules['mine']
  with saved_run.Run(workdir) as run:
    assert saved_run.system(run.find().info).model.depths == (2, 2)


def test_a_module_that_is_not_there_is_named():
  with pytest.raises(ValueError, match='model.module=.nowhere'):
    config_lib.import_module('nowhere')


class _Layers(models.Backbone):
  layers: int = 1


class _Any(models.Backbone):
  table: dict[str, int] = None


@pytest.mark.parametrize('family, field', [
    (_Layers, '_Layers.layers'), (_Any, '_Any.table')])
def test_attributes_that_no_config_can_hold_are_refused(family, field):
  with pytest.raises(ValueError, match=field):
    models.register(family, {})


def test_a_rule_of_ones_own(blocks, monkeypatch):
  monkeypatch.setattr(confidence, 'RULES', dict(confidence.RULES))
  exec(blocks[-1], dict(jax=jax, jnp=jnp))
  logits = jnp.float32([[[1., 4., 2.], [0., 0., 3.]]] * 2)
  np.testing.assert_array_equal(
      confidence.confidences(confidence.RULES['two_best'], logits),
      [[2., 3.]] * 2)
  assert 'two_best' in confidence.rules_for(regression=False)

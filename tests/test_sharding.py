"""Rows of the policy phases stay on the devices that hold their images."""

import re

from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import pytest
import tiny


@pytest.mark.parametrize('phase', ['warm_start', 'joint'])
def test_no_device_gathers_the_tokens_of_the_batch(phase):
  config, mesh = tiny.get_config(), mesh_lib.make_mesh()
  system = system_lib.create(config, tiny.dataset())
  state = mesh_lib.put_shapes(step_lib.abstract_state(system, phase), mesh)
  batch = [jax.ShapeDtypeStruct(shape, dtype,
                                sharding=mesh_lib.batch_sharding(mesh))
           for shape, dtype in (((16, 8, 8, 1), jnp.uint8), ((16,), jnp.int32))]
  step = jax.jit(step_lib.make_step(system, phase, 0))
  hlo = step.lower(state, *batch).compile().as_text()
  width = system.model.width
  assert 'all-reduce' in hlo
  gathered = re.findall(r'f32\[([\d,]+)\][^=]* all-gather\(', hlo)
  tokens = f'{system.model.num_tokens},{width}'
  assert not [shape for shape in gathered if shape.endswith(tokens)], gathered

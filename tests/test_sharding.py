"""Rows of a batch stay on the devices that hold their images."""

import re

from adavit_jax.models import plan
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import pytest
import tiny

RAVIT = {'model.name': 'ravit_cifar_patch4_32', 'model.depth': None,
         'model.image_size': 8, 'model.patch_size': 2, 'model.num_heads': 2,
         'model.layers': (2, 1), 'model.factors': (2., 1.)}


@pytest.mark.nightly
@pytest.mark.parametrize('phase, fields', [
    ('joint', {}), ('dense', {}), ('exits', {'phases': ('exits',)}),
    ('warm_start', {}), ('policy', {}), ('joint', RAVIT)])
@pytest.mark.parametrize('fsdp', [1, 2, 8])
def test_no_device_sends_the_tokens_of_its_images(
    fsdp, phase, fields, monkeypatch):
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  config, mesh = tiny.get_config(), mesh_lib.make_mesh(fsdp=fsdp)
  config.model.depth = 2  # compiles faster
  config.update_from_flattened_dict(fields)
  system = system_lib.create(config, tiny.dataset())
  state = sharded.put_shapes(step_lib.abstract_state(system, phase), mesh)
  batch = [jax.ShapeDtypeStruct(shape, dtype,
                                sharding=mesh_lib.batch_sharding(mesh))
           for shape, dtype in (((16, 8, 8, 1), jnp.uint8), ((16,), jnp.int32))]
  step = step_lib.jitted(step_lib.make_step(system, phase, 0), state, mesh)
  hlo = step.lower(state, *batch).compile().as_text()
  assert 'all-reduce' in hlo
  groups = {','.join(map(str, x.shape)) for x in jax.tree.leaves(state.params)
            if x.sharding.spec}
  assert bool(groups) == (fsdp > 1)
  sent = re.findall(r'\w+\[([\d,]+)\][^=]* '
                    r'(?:all-gather|all-to-all|collective-permute)\(', hlo)
  kept = ['8,8,1']  # images, which a RAViT looks at again
  for place in range(plan.num_encoders(system.model) + 1):
    at = plan.tokens_at(system.model, place)
    kept.append(f'{at.num},{at.width}')
  assert groups.intersection(sent) or fsdp == 1  # parameters are gathered
  assert not [shape for shape in sent if shape.endswith(tuple(kept))
              and shape not in groups], sent

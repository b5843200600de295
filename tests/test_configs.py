"""Every file of `configs/`, in every variant, makes a system that can train."""

import pathlib
import types

from adavit_jax import data
from adavit_jax.runs import checks
from adavit_jax.train import accumulate
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import system as system_lib
import pytest
import tiny

FILES = sorted(p.stem for p in pathlib.Path(tiny.ROOT, 'configs').glob('*.py'))
# Those that have others than the one without a name.
VARIANTS = dict(
    cifar10_crossvit=('', 'cpu'),
    cifar10_dvt=('', 'cpu', 'cifar100'), cifar10_evo=('', 'cpu'),
    cifar10_exits=('', 'cpu', 'cpu_heads'),
    cifar10_levit=('', 'cpu'),
    cifar10_policy=('', 'cpu', 'cpu_65'),
    cifar10_ravit=('', 'cpu'), cifar10_vil=('', 'cpu'),
    digit_scenes_policy=('mix', 'max'),
    digits_exits=('', 'end_to_end', 'layer_wise'),
    digits_policy=('', 'patent', 'self_critical'),
    folder_exits=('', 'tiny'), folder_policy=('', 'tiny'),
    imagenet_crossvit=('small_240', '15_dagger_408'),
    imagenet_evo=('tiny_224', 'small_224', 'base_384'),
    imagenet_levit=('128s', '256', '384', 'evo_128'),
    imagenet_dvt=('t2t_12', 't2t_14', 'deit_small'),
    imagenet_policy=('small', 'taught', 'base', 'large', 'tiny'),
    cifar10_shuffle=('', 'cpu'), imagenet_shuffle=('tiny', 'base'),
    imagenet_vil=('small_224', 'base_deep_384', 'l1,p4,f8_l2,s0,g0'))


@pytest.mark.parametrize('name, variant', [
    (name, variant) for name in FILES
    for variant in VARIANTS.get(name, ('',))])
def test_a_variant_can_train(name, variant):
  config = tiny.load(f'configs/{name}.py').get_config(variant)
  if config.phases[0] not in phases.having('from_scratch'):
    config.init.workdir = 'a run that is there'
  if config.teacher.model:
    config.teacher.weights = 'a file that is there'
  config_lib.check(config)
  regression = name.startswith('rotated')
  channels = 1 if 'digit' in name else 3
  system = system_lib.create(config, types.SimpleNamespace(
      num_classes=0 if regression else 10, channels=channels,
      mean=(.5,) * channels, std=(.5,) * channels,
      target=data.Target(0., 1., 'degrees') if regression else None))
  accumulate.check(config, mesh_lib.make_mesh(1, 1))
  phases.check(system)
  checks.both_heads(config, system)
  checks.budget(config, system)

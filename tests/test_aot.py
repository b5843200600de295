"""The systems that the TPU benchmark compiles can be made of the configs."""

import pathlib

import pytest
import tiny


@pytest.fixture(scope='module')
def aot_tpu():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(pathlib.Path(tiny.ROOT, 'benchmarks'))
    yield tiny.load('benchmarks/aot_tpu.py')


@pytest.mark.parametrize('name', ['imagenet_policy', 'imagenet_ravit'])
def test_system_of_an_imagenet_config(aot_tpu, name):
  config = tiny.load(f'configs/{name}.py').get_config()
  system = aot_tpu.make_system(config, 1000)
  assert system.model.num_classes == 1000
  assert system.mean == (0.485, 0.456, 0.406) and system.target is None

"""Files whose contents are not usable as they are: one sentence says why."""

import argparse
import collections
import json
import logging
import pickle
import sys
import zipfile

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.weights import mismatch
from adavit_jax.weights import torch_files
import efficient
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_weights import golden_model
from test_weights import path

KEY = jax.random.key(0)


def refusal(read, *args):
  """The message, which is one line."""
  with pytest.raises(ValueError) as error:
    read(*args)
  text = str(error.value)
  assert '\n' not in text and '\x1b' not in text
  return text


@pytest.mark.parametrize('name, tensor', [
    ('timm_vit', 'blocks.1.mlp.fc1.weight'), ('hf_vit', 'vit.layernorm.bias'),
    ('augreg', 'Transformer/encoderblock_0/LayerNorm_0/scale')])
@pytest.mark.parametrize('value', [
    np.float32('nan'), np.float16('inf'), np.float64(1e300),
    np.float32('-inf').astype(jnp.bfloat16)])
def test_values_that_are_no_numbers(name, tensor, value):
  file = weights.read(path(name))
  x = file.tensors[tensor].astype(value.dtype)
  x.flat[-1] = value
  text = refusal(weights.load, golden_model(name), file._replace(
      tensors={**file.tensors, tensor: x}), KEY)
  short = tensor.removeprefix('vit.')
  assert str(file.path) in text and 'in 1 of' in text and f'({short})' in text


def test_other_peoples_statistics_and_our_own_layout(tmp_path):
  for model in (efficient.levit(), models.create(
      'vit_cifar_conv8_32', image_size=8, width=8, num_heads=1, depth=1,
      num_fixed=0)):
    params = efficient.params(model)
    group = params.get('batch_stats', params['backbone'])
    jax.tree.leaves(group)[-1].flat[0] = np.nan
    file = tmp_path / 'a.safetensors'
    weights.save(file, model, params)
    refusal(weights.load, model, file, KEY)


def test_many_tensors_are_counted():
  file = weights.read(path('timm_vit'))
  tensors = {k: x * np.float32('nan') for k, x in file.tensors.items()}
  text = refusal(weights.load, golden_model(''),
                 file._replace(tensors=tensors), KEY)
  assert f'in {len(tensors)} of {len(tensors)} ' in text and '...' in text
  assert len(text) < 500


def test_what_the_compute_dtype_cannot_hold():
  t = weights.families.layout.Tensor('a', ('a',), (1,))
  arrays = {'a': np.float32([7e4])}
  for dtype in (jnp.float32, jnp.bfloat16):
    mismatch.check_values(golden_model('', dtype=dtype), 'a', [t], arrays)
  assert 'float16' in refusal(mismatch.check_values, golden_model(
      '', dtype='float16'), 'a', [t], arrays)
  mismatch.check_values(golden_model('', dtype='float16'), 'a', [
      t._replace(group='batch_stats')], arrays)


def test_types_that_numpy_does_not_have(tmp_path):
  x = np.float32([0.5, -2])
  for dtype in (jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2):
    safetensors.numpy.save_file(
        {'a': x.astype(dtype), 'b': x}, tmp_path / 'a.safetensors')
    got = weights.read(tmp_path / 'a.safetensors').tensors
    assert got['a'].dtype == dtype
    for name in got:
      np.testing.assert_array_equal(got[name].astype(np.float32), x)
  np.savez(tmp_path / 'a.npz', a=x.astype(jnp.bfloat16))
  got = weights.read(tmp_path / 'a.npz').tensors['a']
  np.testing.assert_array_equal(got.astype(np.float32), x)


class Rebuilt:
  """Pickled as a call of the function that torch.save names for tensors."""

  def __reduce__(self):
    return collections.OrderedDict, ()


def torch_zip(file, content, protocol=2):
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('a/data.pkl', pickle.dumps(content, protocol))


@pytest.mark.parametrize('protocol', [2, 4])
def test_objects_are_named_without_torch(tmp_path, monkeypatch, protocol):
  monkeypatch.setitem(sys.modules, 'torch', None)
  file = tmp_path / 'a.pth'
  namespace = argparse.Namespace(lr=0.1)
  torch_zip(file, {'model': Rebuilt(), 'args': namespace, 'more': namespace,
                   'best': np.float64(1)}, protocol)
  text = refusal(weights.read, file)
  assert str(file) in text and 'argparse.Namespace' in text
  assert 'multiarray.scalar' in text and "checkpoint['model']" in text
  assert 'Rebuilt' not in text and 'OrderedDict' not in text
  torch_zip(file, {'model': Rebuilt()}, protocol)
  assert 'pip install torch' in refusal(weights.read, file)


def test_objects_of_files_before_torch_1_6(tmp_path):
  with open(tmp_path / 'a.pth', 'wb') as file:
    for x in (torch_files._MAGIC, 1001, {}, {'x': argparse.Namespace()}):
      pickle.dump(x, file, 2)
  assert torch_files.objects(tmp_path / 'a.pth')[0] == ('argparse.Namespace',)


@pytest.mark.parametrize('old', [False, True])
def test_torch_files_with_objects(tmp_path, old):
  torch = pytest.importorskip('torch')
  file = tmp_path / 'a.pth'
  save = lambda x: torch.save(x, file, _use_new_zipfile_serialization=not old)
  save({'state_dict': {'a': torch.ones(2)}, 'args': argparse.Namespace()})
  text = refusal(weights.read, file)
  assert 'argparse.Namespace' in text and "checkpoint['state_dict']" in text
  assert 'weights_only' not in text and 'damaged' not in text
  save(torch.nn.Linear(2, 2))
  assert 'model.state_dict()' in refusal(weights.read, file)


def test_which_set_of_weights_is_read(tmp_path, caplog):
  torch = pytest.importorskip('torch')
  def read(content):
    torch.save(content, tmp_path / 'a.pth')
    return weights.read(tmp_path / 'a.pth')
  one, two = ({'a': torch.full((2,), x)} for x in (1., 2.))
  assert read({'model_ema': two, 'model': one}).tensors['a'][0] == 1
  assert "'model' is read" in caplog.text and 'model_ema' in caplog.text
  caplog.clear()
  with caplog.at_level(logging.INFO, 'absl'):
    assert read({'state_dict_ema': two, 'epoch': 3}).tensors['a'][0] == 2
  assert "'state_dict_ema'" in caplog.text
  text = refusal(read, {'student': one, 'teacher': two, 'epoch': 3})
  assert all(key in text for key in ('student', 'teacher', 'epoch'))
  assert 'step (int)' in refusal(read, {'model': {**one, 'step': 3}})
  assert 'Tensor' in refusal(read, torch.ones(2))
  got = read({'model': one, 'class_to_idx': {'x': 0}}).metadata
  assert json.loads(got['class_to_idx']) == {'x': 0}


def test_settings_under_a_key_of_weights():
  one = {'a': np.ones(2)}
  read = lambda content: torch_files._weights('a.pth', content, np.ndarray)
  assert read({'model': {'name': 'vit'}, 'state_dict': one}) is one
  assert read({'model': {'state_dict': one, 'epoch': 3}}) is one


def shards(folder, sizes=(1, 2), index=None):
  names = [f'model-{i + 1:05d}-of-{len(sizes):05d}.safetensors'
           for i in range(len(sizes))]
  tensors = list(weights.read(path('timm_vit')).tensors.items())
  for i, name in enumerate(names):
    if sizes[i]:
      safetensors.numpy.save_file(dict(tensors[i::len(sizes)]), folder / name)
  if index is None:
    index = {key: names[j % len(sizes)] for j, (key, _) in enumerate(tensors)}
  file = folder / 'model.safetensors.index.json'
  file.write_text(json.dumps({'weight_map': index}))
  return file, [folder / name for name in names]


def test_shards_are_read_as_one_file(tmp_path):
  index, files = shards(tmp_path)
  want = weights.read(path('timm_vit')).tensors
  for file in (index, *files):
    got = weights.read(file)
    jax.tree.map(np.testing.assert_array_equal, got.tensors, want)
    assert got.path == file
  index.unlink()
  assert weights.read(files[1]).tensors.keys() == want.keys()
  assert files[0].name not in refusal(weights.read, tmp_path / 'x.safetensors')


def test_shards_that_are_missing(tmp_path):
  index, files = shards(tmp_path, (1, 0, 1))
  for file in (index, files[2]):
    text = refusal(weights.read, file)
    assert files[1].name in text and files[0].name not in text
  # Nor does the index have to list the shard.
  index, files = shards(tmp_path / '..' / tmp_path.name, (1, 0), {
      'cls_token': 'model-00001-of-00002.safetensors'})
  assert files[1].name in refusal(weights.read, files[0])


def test_a_part_is_not_taken_for_a_shallower_model():
  file = weights.read(path('hf_vit'))
  part = {k: x for k, x in file.tensors.items()
          if 'layer.2' not in k and 'vit.layernorm' not in k}
  for tensors in (part, {k: x for k, x in file.tensors.items() if (
      'layer.2' not in k and 'layer.1.output' not in k)}):
    with pytest.raises(ValueError, match='is incomplete.*index.json') as error:
      weights.load(golden_model(''), file._replace(tensors=tensors), KEY)
    assert 'depth=' not in str(error.value)


@pytest.mark.parametrize('index, match', [
    ({'x': '../x.safetensors'}, r'\.\./x'), ([], 'weight_map'), ({}, 'names?'),
    ({'lost': 'model-00001-of-00002.safetensors'}, 'lost')])
def test_an_index_that_does_not_fit(tmp_path, index, match):
  with pytest.raises(ValueError, match=f'index.json.*{match}'):
    weights.read(shards(tmp_path, index=index)[0])


def test_folders_and_pointers(tmp_path):
  index, _ = shards(tmp_path)
  assert str(index) in refusal(weights.read, tmp_path)
  file = tmp_path / 'a.safetensors'
  file.write_text('version https://git-lfs.github.com/spec/v1\nsize 3\n')
  assert 'git lfs pull' in refusal(weights.read, file)

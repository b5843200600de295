"""Files of the Shuffle Transformer's authors, in and out."""

import pathlib

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models import shuffle_transformer
from adavit_jax.weights import files
import efficient
import jax
import numpy as np
import pytest

KEY = jax.random.key(0)
D, F, C, K = 4, 6, 1, 4  # widths, channels of the image, classes


def _shapes():
  """Names and shapes of the authors' tensors, for `efficient.shuffle`."""
  norm = lambda name, width: {
      f'{name}.{part}': (width,)
      for part in ('weight', 'bias', 'running_mean', 'running_var')} | {
          f'{name}.num_batches_tracked': ()}
  conv = lambda name, *shape: {f'{name}.weight': shape,
                               f'{name}.bias': shape[:1]}

  def block(name, width, heads):
    return {
        **norm(f'{name}.norm1', width),
        f'{name}.attn.relative_position_bias_table': (9, heads),
        f'{name}.attn.relative_position_index': (4, 4),
        f'{name}.attn.to_qkv.weight': (3 * width, width, 1, 1),
        **conv(f'{name}.attn.proj', width, width, 1, 1),
        **conv(f'{name}.local', width, 1, 3, 3),
        **norm(f'{name}.norm2', width),
        **conv(f'{name}.mlp.fc1', 4 * width, width, 1, 1),
        **conv(f'{name}.mlp.fc2', width, 4 * width, 1, 1),
        **norm(f'{name}.norm3', width)}

  return {
      **conv('to_token.conv1.0', 3, C, 3, 3), **norm('to_token.conv1.1', 3),
      **conv('to_token.conv2.0', D, 3, 3, 3), **norm('to_token.conv2.1', D),
      **conv('to_token.conv3', D, D, 1, 1),
      **block('stage1.layers.0.0', D, 2), **block('stage1.layers.0.1', D, 2),
      **block('stage1.layers.1.0', D, 2), **block('stage1.layers.1.1', D, 2),
      **norm('stage2.patch_partition.norm', D),
      'stage2.patch_partition.reduction.weight': (F, D, 2, 2),
      **block('stage2.layers.0.0', F, 3), **block('stage2.layers.0.1', F, 3),
      **conv('head', K, F)}


def _model(**overrides):
  return efficient.shuffle(**{'depths': (4, 2), **overrides})


def _file(**more):
  rng = np.random.default_rng(0)
  tensors = {
      name: rng.integers(0, 9, shape) if name.endswith(('tracked', 'index'))
      else rng.normal(size=shape).astype(np.float32)
      for name, shape in _shapes().items()}
  return files.Checkpoint(pathlib.Path('a.pth'), {**tensors, **more}, {})


def _floats(tensors):
  return {name: x for name, x in tensors.items() if x.dtype == np.float32}


def _same(got, want):
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], name)


def test_files_are_read_and_written_back(tmp_path):
  model, file, path = _model(), _file(), tmp_path / 'a.safetensors'
  params = weights.load(model, file, KEY)
  p, stats, tensors = params['backbone'], params['batch_stats'], file.tensors
  # Rows are pairs of blocks; what torch has as 1x1 convolutions are matrices.
  name = 'stage1.layers.1.1'
  layer = jax.tree.map(lambda leaf: leaf[1], p['encoders_0'])
  np.testing.assert_array_equal(
      layer['shuffled_msa']['qkv']['kernel'],
      tensors[f'{name}.attn.to_qkv.weight'][:, :, 0, 0].T)
  np.testing.assert_array_equal(
      layer['shuffled_local']['conv']['kernel'][:, :, 0],
      tensors[f'{name}.local.weight'][:, 0].transpose(1, 2, 0))
  np.testing.assert_array_equal(
      layer['shuffled_msa']['table'],
      tensors[f'{name}.attn.relative_position_bias_table'].T)
  np.testing.assert_array_equal(
      stats['encoders_0']['shuffled_mlp']['norm']['mean'][1],
      tensors[f'{name}.norm3.running_mean'])
  np.testing.assert_array_equal(
      p['merge_1']['conv']['kernel'],
      tensors['stage2.patch_partition.reduction.weight'].transpose(2, 3, 1, 0))
  weights.save(path, model, params)
  _same(weights.read(path).tensors, _floats(tensors))


def test_all_models_of_the_paper_have_the_authors_layout(tmp_path):
  name = 'stage3.layers.8.1.attn.relative_position_bias_table'
  for model in shuffle_transformer.MODELS:
    model = models.create(model)
    formats = weights.families.of(model)
    assert len(formats) == 1 + (model.image_size == 224)
    tensors = {t.name: t.shape for t in formats[0].tensors(model, ())}
    if model.depths[2] == 18:
      assert tensors[name] == (169, model.heads[2])


def test_other_classes_get_a_new_head():
  got = weights.load(_model(num_classes=7), _file(), KEY)
  kept = weights.load(_model(), _file(), KEY)
  kernel = got['backbone'].pop('head')['kernel']
  assert kernel.shape == (F, 7) and 0.01 < np.std(kernel) < 0.03
  kept['backbone'].pop('head')
  jax.tree.map(np.testing.assert_array_equal, got, kept)


@pytest.mark.parametrize('overrides, field', [
    (dict(depths=(2, 2)), r'depths=\(4, 2\) \(not \(2, 2\)\)'),
    (dict(heads=(1, 2)), r'heads=\(2, 3\) \(not \(1, 2\)\)'),
    (dict(widths=(8, 12)), r'widths=\(4, 6\) \(not \(8, 12\)\)'),
    (dict(kernel_size=5), r'local.weight \[4, 1, 3, 3\] in the file'),
    (dict(patch_size=2), 'patch_size=2 instead of 4')])
def test_what_does_not_fit_is_named(overrides, field):
  with pytest.raises(ValueError, match=field):
    weights.load(_model(**overrides), _file(), KEY)


def test_preprocessing():
  got = weights.preprocessing(_file())
  assert got.mean == (0.485, 0.456, 0.406)
  assert (got.interpolation, got.crop) == ('bicubic', 0.875)

"""Files of Evo-ViT's authors and of DeiT, in and out."""

import pathlib

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.weights import files
import efficient
import jax
import numpy as np
import pytest

KEY = jax.random.key(0)
D, F, T, K = 8, 16, 16, 4  # widths, patches, classes


def _shapes(depth=4):
  """Names and shapes of the authors' tensors, for `efficient.evo`."""
  dense = lambda name, out, num_in: {
      f'{name}.weight': (out, num_in), f'{name}.bias': (out,)}
  norm = lambda name: {f'{name}.weight': (D,), f'{name}.bias': (D,)}
  shapes = {'cls_token': (1, 1, D), 'pos_embed': (1, 1 + T, D),
            'patch_embed.proj.weight': (D, 1, 2, 2),
            'patch_embed.proj.bias': (D,)}
  for i in range(depth):
    shapes |= {
        **norm(f'blocks.{i}.norm2'), **dense(f'blocks.{i}.mlp.fc1', F, D),
        **dense(f'blocks.{i}.mlp.fc2', D, F), **dense(f'qks.{i}.qk', 2 * D, D),
        **dense(f'vs.{i}.v', D, D), **norm(f'norms.{i}'),
        **dense(f'projs.{i}', D, D)}
  return {**shapes, **norm('norm'), **dense('head', K, D),
          **norm('norm_cls'), **dense('head_cls', K, D)}


def _file(shapes=None, **more):
  rng = np.random.default_rng(0)
  tensors = {name: rng.normal(size=shape).astype(np.float32)
             for name, shape in (shapes or _shapes()).items()}
  return files.Checkpoint(pathlib.Path('a.pth'), {**tensors, **more}, {})


def _same(got, want):
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], name)


def test_files_are_read_and_written_back(tmp_path):
  model, file, path = efficient.evo(), _file(), tmp_path / 'a.safetensors'
  params = weights.load(model, file, KEY)
  p, tensors = params['backbone'], file.tensors
  encoders = p['encoders']
  np.testing.assert_array_equal(
      encoders['qkv']['kernel'][2],
      np.concatenate([tensors['qks.2.qk.weight'], tensors['vs.2.v.weight']]).T)
  for leaf, name in (
      (encoders['norm1']['scale'][1], 'norms.1.weight'),
      (encoders['norm2']['bias'][1], 'blocks.1.norm2.bias'),
      (encoders['proj']['bias'][3], 'projs.3.bias'),
      (p['norm_cls']['scale'], 'norm_cls.weight'),
      (p['head_cls']['bias'], 'head_cls.bias')):
    np.testing.assert_array_equal(leaf, tensors[name])
  weights.save(path, model, params)
  _same(files.read(path).tensors, tensors)
  # The other attributes of inference do not belong to a file.
  other = efficient.evo(keep_ratio=1, layerwise=1)
  jax.tree.map(np.testing.assert_array_equal,
               weights.load(other, str(path), KEY), params)
  with pytest.raises(ValueError, match='num_full=1'):
    weights.load(efficient.evo(num_full=2), str(path), KEY)
  assert weights.preprocessing(file).crop == 0.875


def test_the_heads_of_inference_fill_those_of_training(caplog):
  file = _file()
  less = {name: x for name, x in file.tensors.items() if '_cls.' not in name}
  p = weights.load(efficient.evo(), file._replace(tensors=less), KEY)
  assert 'class token' in caplog.text
  p = p['backbone']
  for one, other in (('norm', 'norm_cls'), ('head', 'head_cls')):
    jax.tree.map(np.testing.assert_array_equal, p[one], p[other])


def test_a_vit_does_not_take_it_and_other_classes_give_new_heads():
  with pytest.raises(ValueError, match='Evo-ViT layout'):
    weights.load(models.create('vit_tiny_patch16_224'), _file(), KEY)
  p = weights.load(efficient.evo(num_classes=5), _file(), KEY)['backbone']
  assert {p[head]['kernel'].shape for head in ('head', 'head_cls')} == {(D, 5)}
  np.testing.assert_array_equal(
      p['norm_cls']['bias'], _file().tensors['norm_cls.bias'])


def test_a_deit_becomes_an_evo_deit_of_another_size(tmp_path):
  """Its head reads the class token there; here both heads begin with it."""
  path = tmp_path / 'a.safetensors'
  vit = models.create('vit_digits_patch2_8', width=D, depth=4, num_classes=K)
  params = efficient.params(vit)
  weights.save(path, vit, params)
  p = weights.load(efficient.evo(), str(path), KEY)['backbone']
  for part, same in (('norm', 'norm_cls'), ('head', 'head_cls')):
    for name in (part, same):
      jax.tree.map(np.testing.assert_array_equal, p.pop(name),
                   params['backbone'][part])
  rest = {name: params['backbone'][name] for name in p}
  jax.tree.map(np.testing.assert_array_equal, p, rest)
  large = weights.load(efficient.evo(image_size=12), str(path), KEY)
  wanted = weights.load(vit.clone(image_size=12), str(path), KEY)
  np.testing.assert_array_equal(*(
      x['backbone']['pos_embedding'] for x in (large, wanted)))
  new = weights.load(efficient.evo(num_classes=7), str(path), KEY)['backbone']
  assert {new[head]['bias'].shape for head in ('head', 'head_cls')} == {(7,)}

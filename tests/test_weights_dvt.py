"""Checkpoints of DVT's own code: names and shapes by hand, both ways."""

from adavit_jax import models
from adavit_jax import weights
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from test_dvt_reuse import model
import tiny

KEY = jax.random.key(0)
D, HIDDEN, K, L, H = 8, 16, 3, 2, 2


def _names(**overrides):
  """{name: shape} as the modules of its code have them."""
  m = model(**overrides)
  shapes = {}
  def linear(name, num_in, out, bias=True):
    shapes[f'{name}.weight'] = (out, num_in)
    if bias:
      shapes[f'{name}.bias'] = (out,)
  def norm(name, width):
    shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (width,)
  for k, p in enumerate(('less_less_token', 'less_token', 'normal_token')):
    n = m.grids[k] ** 2
    shapes[f'{p}.cls_token'] = (1, 1, D)
    shapes[f'{p}.pos_embed'] = (1, n + 1, D)
    if m.stem == 't2t':
      t = f'{p}.tokens_to_token'
      for name, size in (('attention1', m.windows[k][0] ** 2),
                         ('attention2', 576)):
        shapes[f'{t}.{name}.w'] = (32, 64)
        norm(f'{t}.{name}.norm1', size)
        norm(f'{t}.{name}.norm2', 64)
        linear(f'{t}.{name}.kqv', size, 192)
        for part in ('proj', 'mlp.0', 'mlp.2'):
          linear(f'{t}.{name}.{part}', 64, 64)
      linear(f'{t}.project', 576, D)
    else:
      side = (6, 4, 3)[k]
      shapes[f'{p}.patch_embed.proj.weight'] = (D, 1, side, side)
      shapes[f'{p}.patch_embed.proj.bias'] = (D,)
    for i in range(L):
      b, wide = f'{p}.blocks.{i}', D + 48 * (k > 0)
      norm(f'{b}.norm1', D)
      linear(f'{b}.attn.qkv', D, 3 * D, bias=m.stem != 't2t')
      linear(f'{b}.attn.proj', D, D)
      norm(f'{b}.norm2', wide)
      linear(f'{b}.mlp.fc1', wide, HIDDEN)
      linear(f'{b}.mlp.fc2', HIDDEN, D)
      if k:
        norm(f'{b}.feature_resuse_mlp.0', D)
        linear(f'{b}.feature_resuse_mlp.1.fc1', D, 128)
        linear(f'{b}.feature_resuse_mlp.1.fc2', 128, 48)
    if k:
      c = L * H
      for i, (num_in, out) in ((0, (c, 3 * c)), (2, (3 * c, c))):
        shapes[f'{p}.relation_reuse_conv.{i}.weight'] = (out, num_in, 1, 1)
        shapes[f'{p}.relation_reuse_conv.{i}.bias'] = (out,)
    norm(f'{p}.norm', D)
    linear(f'{p}.head', D, K)
  return shapes


T2T = dict(stem='t2t', image_size=24, grids=(2, 3, 6),
           windows=((3, 3, 0), (5, 2, 1), (3, 1, 0)), reuse_features=True)


def _file(tmp_path, **overrides):
  rng = np.random.default_rng(0)
  tensors = {name: rng.normal(size=shape).astype(np.float32)
             for name, shape in _names(**overrides).items()}
  path = tmp_path / 'dvt.safetensors'
  safetensors_numpy.save_file(tensors, path)
  return path, tensors


@pytest.mark.parametrize('overrides', [dict(), T2T])
def test_in_and_out_bit_for_bit(tmp_path, overrides):
  m = model(**overrides)
  path, tensors = _file(tmp_path, **overrides)
  params = weights.load(m, path, KEY)
  out = tmp_path / 'again.safetensors'
  weights.save(out, m, params)
  again = safetensors_numpy.load_file(out)
  assert again.keys() == tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)
  p = params['backbone']
  np.testing.assert_array_equal(
      p['encoders_1']['reuse_fc1']['kernel'][1],
      tensors['less_token.blocks.1.feature_resuse_mlp.1.fc1.weight'].T)
  np.testing.assert_array_equal(
      p['relations_2']['fc1']['kernel'],
      tensors['normal_token.relation_reuse_conv.0.weight'][..., 0, 0].T)
  if m.stem == 't2t':
    np.testing.assert_array_equal(
        p['patch_embed_0']['performer_2']['w'],
        tensors['less_less_token.tokens_to_token.attention2.w'])
  else:
    np.testing.assert_array_equal(
        p['patch_embed_0']['proj']['kernel'][1, 2, 0],
        tensors['less_less_token.patch_embed.proj.weight'][:, 0, 1, 2])


def test_every_name_of_the_paper_has_the_layout():
  for name in ('dvt_t2t_vit_12_224', 'dvt_t2t_vit_14_224',
               'dvt_deit_small_224'):
    m = models.create(name)
    fmt = weights.families.of(m)[0]
    params = jax.eval_shape(lambda m=m: models.init_params(m, KEY))
    count = sum(int(np.prod(t.shape)) for t in fmt.tensors(m))
    assert count == sum(x.size for x in jax.tree.leaves(params))
  t = {t.name: t.shape for t in fmt.tensors(m)}
  assert t['less_token.patch_embed.proj.weight'] == (384, 3, 23, 23)
  assert t['normal_token.blocks.11.mlp.fc1.weight'] == (1536, 432)


def test_other_files_are_refused(tmp_path):
  path, tensors = _file(tmp_path)
  refused = lambda m, match: pytest.raises(
      ValueError, weights.load, m, path, KEY).match(match)
  refused(model(width=16), r'wrong shape')
  refused(model(reuse_relations=False),
          r'not in the model:\n.*relation_reuse_conv')
  refused(model(grids=(2, 3)), 'num_transformers=2 instead of 3')
  refused(tiny.model(), 'ViT.* does not have')
  del tensors['less_token.blocks.1.feature_resuse_mlp.0.bias']
  safetensors_numpy.save_file(tensors, path)
  refused(model(), r'missing in the file:\n.*feature_resuse_mlp.0.bias \[8\]')
  path.write_bytes(path.read_bytes()[:-100])
  refused(model(), r'dvt.safetensors cannot be read')


def test_other_classes_get_new_heads(tmp_path):
  path, tensors = _file(tmp_path)
  params = weights.load(model(num_classes=7), path, KEY)['backbone']
  for k, prefix in enumerate(('less_less_token', 'less_token', 'normal_token')):
    assert params[f'head_{k}']['kernel'].shape == (8, 7)
    np.testing.assert_array_equal(
        params[f'cls_{k}'], tensors[f'{prefix}.cls_token'])


def test_its_images_are_imagenets(tmp_path):
  path, _ = _file(tmp_path)
  assert weights.preprocessing(path) == weights.Preprocessing(
      (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bicubic', 0.9)

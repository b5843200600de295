"""Files of Evo-LeViT's authors, in and out."""

from adavit_jax import weights
from adavit_jax.weights import positions
import efficient
from evo_levit_file import checkpoint
from evo_levit_file import tensors
import jax
import numpy as np
import pytest

KEY = jax.random.key(0)


def _same(got, want):
  assert got.keys() == want.keys()
  for name, x in want.items():
    assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape), name
    np.testing.assert_array_equal(got[name], x, err_msg=name)


def test_files_come_back(tmp_path):
  model = efficient.evo_levit()
  file = tensors(model)
  weights.save(tmp_path / 'a.safetensors', model,
               weights.load(model, checkpoint(file), KEY))
  _same(weights.read(tmp_path / 'a.safetensors').tensors,
        {name: x for name, x in file.items() if 'num_batches' not in name})
  theirs = checkpoint(file)._replace(path=tmp_path / 'b.safetensors')
  assert weights.preprocessing(theirs).crop == 0.875
  # Settings of inference are not in the file.
  weights.load(model.copy(keep_ratio=1, layerwise=1),
               tmp_path / 'a.safetensors', KEY)
  with pytest.raises(ValueError, match=r'num_full=1 \(not 2\)'):
    weights.load(model.copy(num_full=2), tmp_path / 'a.safetensors', KEY)


def test_what_does_not_fit_is_named():
  model = efficient.evo_levit()
  file = tensors(model)
  with pytest.raises(ValueError, match=r'depths=\(2, 2\) \(not \(2, 1\)\)'):
    weights.load(model.copy(depths=(2, 1)), checkpoint(file), KEY)
  levit = efficient.levit(image_size=16, depths=(2, 2))
  with pytest.raises(ValueError, match='Evo-LeViT layout, which a LeViT'):
    weights.load(levit, checkpoint(file), KEY)
  name = 'stage_blocks.2.m.0.m.qkv.c.weight'
  file[name] = file[name] + 1
  with pytest.raises(ValueError, match=f'not in the model:\n.*{name}'):
    weights.load(model, checkpoint(file), KEY)


def test_another_image_size():
  small, large = efficient.evo_levit(), efficient.evo_levit(image_size=24)
  file = tensors(small)
  got = weights.load(large, checkpoint(file), KEY)['backbone']
  for x, name in ((got['pos_embedding'], 'poss'),
                  (got['subsample_1']['pos_embedding'], 'blocks.2.poss')):
    np.testing.assert_array_equal(x, positions.resize(file[name], 1, 6))


@pytest.mark.parametrize('missing, copies', [
    ('_dist', {'head': 'head_dist', 'head_cls': 'head_cls_dist'}),
    ('_cls', {'head': 'head_cls', 'head_dist': 'head_cls_dist'})])
def test_files_without_some_heads(missing, copies):
  model = efficient.evo_levit()
  file = {name: x for name, x in tensors(model).items() if missing not in name}
  file['cls_token'] = tensors(model)['cls_token']
  got = weights.load(model, checkpoint(file), KEY)
  for name, copy in copies.items():
    for a, b in ((name, copy), (f'{name}_norm', f'{copy}_norm')):
      jax.tree.map(np.testing.assert_array_equal, got['backbone'][a],
                   got['backbone'][b])
    jax.tree.map(np.testing.assert_array_equal,
                 got['batch_stats'][f'{name}_norm'],
                 got['batch_stats'][f'{copy}_norm'])
  # For other classes, all heads are new.
  other = weights.load(model.copy(num_classes=7), checkpoint(file), KEY)
  assert {other['backbone'][name]['bias'].shape for name in (
      'head', 'head_dist', 'head_cls', 'head_cls_dist')} == {(7,)}

"""Files of Vision Longformer's authors: against NumPy, and bit for bit back."""

from adavit_jax import weights
from adavit_jax.runtime import modes
import efficient
import jax
import numpy as np
import numpy_vil
import pytest

KEY = jax.random.key(0)
# Local with absolute positions, local with biases, full with biases, and full
# without global tokens, with the empty positions that its file has.
MODEL = dict(
    image_size=12, num_classes=5, channels=3, widths=(8, 4, 6, 12),
    depths=(1, 2, 1, 1), heads=(2, 2, 3, 4), patch_sizes=(2, 1, 2, 1),
    windows=(4, 2, 0, 0), num_globals=(1, 2, 1, 0),
    relative=(False, True, True, False))


def tensors(model, seed=0):
  """A file as the modules of the authors' code have it, random."""
  rng, file = np.random.default_rng(seed), {}
  def new(name, *shape, scale=0.5):
    file[name] = np.float32(rng.normal(size=shape) * scale)
  def linear(name, num_in, out):
    new(f'{name}.weight', out, num_in)
    new(f'{name}.bias', out)
  def norm(name, width):
    new(f'{name}.weight', width)
    new(f'{name}.bias', width)
  channels, side = model.channels, model.image_size
  for i, (d, depth, h, p, w, g, relative) in enumerate(zip(
      model.widths, model.depths, model.heads, model.patch_sizes,
      model.windows, model.num_globals, model.relative), 1):
    side //= p
    layer = f'layer{i}'
    new(f'{layer}.0.proj.weight', d, channels, p, p)
    new(f'{layer}.0.proj.bias', d)
    norm(f'{layer}.0.norm_embed', d)
    if g:
      new(f'{layer}.0.cls_token', 1, g, d)
    if not relative:
      new(f'{layer}.0.cls_pos_embed', 1, g, d)
      new(f'{layer}.0.x_pos_embed', 1, side, d // 2)
      new(f'{layer}.0.y_pos_embed', 1, side, d // 2)
    for row in range(depth):
      block = f'{layer}.{2 * row + 1}'
      attn = f'{block}.attn'
      norm(f'{block}.norm', d)
      for name, out in ((('query', d), ('kv', 2 * d)) if w else
                        (('qkv', 3 * d),)) + (('proj', d),):
        linear(f'{attn}.{name}', d, out)
        if w and g:  # the same weights under another name
          for part in ('weight', 'bias'):
            file[f'{attn}.{name}_global.{part}'] = file[
                f'{attn}.{name}.{part}'].copy()
      if relative:
        reach = 4 * w - 1 if w else 2 * side - 1
        new(f'{attn}.local_relative_position_bias_table', reach**2, h)
        if g:
          new(f'{attn}.g2l_relative_position_bias', 2, h, g)
          new(f'{attn}.g2g_relative_position_bias', h, g, g)
        file[f'{attn}.relative_position_index'] = _index(side, w)
      norm(f'{layer}.{2 * row + 2}.norm', d)
      linear(f'{layer}.{2 * row + 2}.mlp.fc1', d, 4 * d)
      linear(f'{layer}.{2 * row + 2}.mlp.fc2', 4 * d, d)
    channels = d
  norm('norm', channels)
  linear('head', channels, model.num_classes)
  return file


def _index(side, window):
  """Row of the table of each query and key: near chunk after near chunk."""
  low, high = (-window, 2 * window) if window else (0, side)
  size = window or side
  place = [(r, c) for r in range(size) for c in range(size)]
  keys = [(r + y, c + x) for y in range(low, high, size)
          for x in range(low, high, size) for r, c in place]
  reach = 2 * size if window else size
  return np.array([[(a - y + reach - 1) * (2 * reach - 1) + b - x + reach - 1
                    for y, x in keys] for a, b in place], np.int64)


def checkpoint(file):
  return weights.Checkpoint('a.pth', file, {})


def same(got, want):
  assert got.keys() == want.keys()
  for name, x in want.items():
    assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape), name
    np.testing.assert_array_equal(got[name], x, err_msg=name)


@pytest.mark.parametrize('more', [
    dict(widths=(8, 12), depths=(2, 1), heads=(2, 4), patch_sizes=(2, 2),
         windows=(4, 0), num_globals=(2, 0), relative=(True, False)),
    *(pytest.param(more, marks=pytest.mark.nightly) for more in (
        {}, dict(exact_windows=True), dict(windows=(3, 4, 2, 2)),
        dict(num_globals=(1, 0, 0, 2), windows=(0, 0, 0, 0)),
        dict(relative=(True, False, False, True), num_globals=(0, 1, 0, 1))))])
def test_logits_equal_those_of_numpy(more):
  model = efficient.vil(**{**MODEL, **more})
  file, images = tensors(model), efficient.images(model)
  params = weights.load(model, checkpoint(file), KEY)
  got = jax.jit(lambda p, x: modes.forward(model, p, x).total)(params, images)
  want = numpy_vil.Naive(model, file).logits(images)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * want.std())


def test_files_come_back(tmp_path):
  model = efficient.vil(**MODEL)
  file = tensors(model)
  weights.save(tmp_path / 'a.safetensors', model,
               weights.load(model, checkpoint(file), KEY))
  same(weights.read(tmp_path / 'a.safetensors').tensors, file)
  theirs = checkpoint(file)._replace(path=tmp_path / 'b.safetensors')
  assert weights.preprocessing(theirs).crop == 0.875


def test_files_of_parallel_training():
  model = efficient.vil(**MODEL)
  file = tensors(model)
  got = weights.load(model, checkpoint(
      {f'module.{name}': x for name, x in file.items()}), KEY)
  jax.tree.map(np.testing.assert_array_equal, got,
               weights.load(model, checkpoint(file), KEY))


def test_weights_of_global_tokens_alone_are_refused():
  model = efficient.vil(**MODEL)
  file = tensors(model)
  file['layer1.1.attn.kv_global.bias'] += 1
  with pytest.raises(ValueError, match='not in the model:\n.*kv_global.bias'):
    weights.load(model, checkpoint(file), KEY)


def test_another_image_size_is_interpolated():
  """As torch does without aligned corners; windows may grow with the image."""
  small = efficient.vil(**MODEL)
  large = small.copy(image_size=24, windows=(4, 4, 0, 0))
  file = tensors(small)
  got = weights.load(large, checkpoint(file), KEY)['backbone']
  x = np.float64(file['layer1.0.x_pos_embed'][0])  # 6 to 12
  want = np.stack([x[0], *(
      (3 * x[i // 2] + x[i // 2 + (1 if i % 2 else -1)]) / 4
      for i in range(1, 11)), x[5]])
  np.testing.assert_allclose(
      got['embed_0']['positions_rows'][0], want, rtol=1e-6)
  table = file['layer2.3.attn.local_relative_position_bias_table']
  place = np.clip((np.arange(15) + .5) * 7 / 15 - .5, 0, 6)
  flat = lambda x: np.stack([np.interp(place, np.arange(7), y) for y in x])
  want = np.stack([flat(flat(y.reshape(7, 7)).T).T for y in table.T], -1)
  np.testing.assert_allclose(
      got['encoders_1']['table'][1], want.reshape(225, 2), atol=1e-6)


def test_what_does_not_fit_is_named(tmp_path):
  model = efficient.vil(**MODEL)
  file = tensors(model)
  with pytest.raises(ValueError, match=r'depths=\(1, 2, 1, 1\) \(not \(1, 1,'):
    weights.load(model.copy(depths=(1, 1, 1, 1)), checkpoint(file), KEY)
  weights.save(tmp_path / 'a.safetensors', model,
               weights.load(model, checkpoint(file), KEY))
  with pytest.raises(ValueError, match=r'heads=\[2, 2, 3, 4\] \(not'):
    weights.load(model.copy(heads=(2, 2, 3, 3)), tmp_path / 'a.safetensors',
                 KEY)


def test_a_checkpoint_of_their_training_script(tmp_path):
  torch = pytest.importorskip('torch')
  model = efficient.vil(**MODEL)
  file = tensors(model)
  torch.save(dict(net={k: torch.tensor(x) for k, x in file.items()},
                  arch='msvit', epoch=3), tmp_path / 'a.pth')
  same(weights.read(tmp_path / 'a.pth').tensors, file)

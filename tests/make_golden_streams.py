"""Writes tests/golden: a tiny LeViT and CrossViT of timm, and what they say.

`python tests/make_golden_streams.py`, with torch and timm. NAME.safetensors has
a NAME_expected.npz with `images` [B, S, S, C], the features behind each stage
(`feature_0` ...; of CrossViT one for each stream), the logits of the heads,
`cls` and, of LeViT, `dist` [B, K], computed in float64, and `names`, those of
the tensors in torch's order.
"""

import pathlib

import numpy as np
import safetensors.torch
import timm
from timm.models import crossvit
from timm.models import levit
import torch

GOLDEN = pathlib.Path(__file__).parent / 'golden'
CLASSES = 5


def randomize(model, seed=0):
  """Random values that make every tensor matter; default ones hide mistakes.

  Statistics too. Matrices keep the scale of what they read; the BatchNorms do
  not normalize then, so their scales are small, or LeViT would explode.
  """
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in model.state_dict().items():
      if not x.is_floating_point():
        continue
      noise = torch.randn(x.shape, generator=generator)
      matrix = x.ndim in (2, 4) and 'attention_biases' not in name
      if name.endswith('running_var'):
        x.copy_(0.5 + torch.rand(x.shape, generator=generator))
      elif matrix:
        x.copy_(noise * x[0].numel()**-0.5)
      elif name.endswith('weight'):
        x.copy_((0.5 if '.bn.' in name else 1) * (1 + 0.3 * noise))
      else:
        x.copy_(0.3 * noise)
  return model.eval()


def answers(model, images):
  """What `model` answers to images [B, S, S, C], in its own precision.

  Returns:
    dict of NumPy arrays: feature_0 ..., cls, and dist if there are two heads.
  """
  found, heads = [], {}
  is_levit = hasattr(model, 'stages')
  def keep(module, args, out):
    found.extend([out] if is_levit else out)
  hooks = [stage.register_forward_hook(keep)
           for stage in (model.stages if is_levit else model.blocks)]
  if hasattr(model, 'head_dist'):
    for key, name in dict(cls='head', dist='head_dist').items():
      hooks.append(getattr(model, name).register_forward_hook(
          lambda module, args, out, key=key: heads.update({key: out})))
  dtype = next(model.parameters()).dtype
  with torch.no_grad():
    out = model(torch.from_numpy(images.transpose(0, 3, 1, 2)).to(dtype))
  for hook in hooks:
    hook.remove()
  heads = heads or dict(cls=out)
  torch.testing.assert_close(sum(heads.values()) / len(heads), out)
  features = {f'feature_{i}': x for i, x in enumerate(found)}
  return {name: x.numpy() for name, x in {**features, **heads}.items()}


def images(size):
  """Two images [2, S, S, 3], coarse so that their files are small."""
  x = np.random.default_rng(1).normal(size=(2, size, size, 3))
  return np.float32(np.round(4 * x) / 4)


def make(name, model, size):
  randomize(model, seed=len(name))
  tensors = model.state_dict()
  safetensors.torch.save_file(tensors, GOLDEN / f'{name}.safetensors')
  (GOLDEN / f'{name}.safetensors').chmod(0o644)
  found = answers(model.double(), images(size))
  np.savez_compressed(
      GOLDEN / f'{name}_expected.npz', images=images(size),
      names=list(tensors), **{k: np.float32(x) for k, x in found.items()})


def main():
  make('timm_levit', levit.LevitDistilled(
      img_size=48, embed_dim=(8, 12, 16), key_dim=4, depth=(1, 2, 1),
      num_heads=(2, 4, 3), num_classes=CLASSES), 48)
  make('timm_crossvit', crossvit.CrossVit(
      img_size=30, img_scale=(1., 28 / 30), patch_size=(3, 4),
      embed_dim=(8, 16), depth=((1, 2, 0),) * 2, num_heads=(2, 2),
      mlp_ratio=(3, 3, 1), qkv_bias=True, num_classes=CLASSES), 30)
  make('timm_crossvit_dagger', crossvit.CrossVit(
      img_size=36, img_scale=(1., 32 / 36), patch_size=(12, 16),
      embed_dim=(8, 16), depth=((1, 1, 0),), num_heads=(2, 2),
      mlp_ratio=(3, 3, 1), multi_conv=True, qkv_bias=True,
      num_classes=CLASSES), 36)


if __name__ == '__main__':
  main()

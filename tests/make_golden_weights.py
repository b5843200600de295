"""Writes tests/golden: tiny checkpoints of other libraries, and what they say.

`python tests/make_golden_weights.py`, with torch, timm and transformers. Each
checkpoint NAME.safetensors or NAME.npz has a NAME_expected.npz with `images`
[B, S, S, C], `blocks` [L, B, N, D] (the encoders' outputs) and the logits of
the heads, `cls` and, of distilled models, `dist` [B, K]; computed in float64.
"""

import pathlib
import zlib

import numpy as np
import safetensors.torch
import timm
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / 'golden'
IMAGE, PATCH, WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 12, 4, 16, 3, 2, 32, 5


def _seed(name):
  return zlib.crc32(name.encode())


def randomize(model, seed=0):
  """Random values that make every tensor matter; default ones hide mistakes.

  Matrices keep the scale of what they read, so that deep models stay tame.
  """
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in model.named_parameters():
      noise = torch.randn(x.shape, generator=generator)
      if 'norm' in name and name.endswith('weight'):
        x.copy_(1 + 0.3 * noise)
      elif x.ndim in (2, 4):
        x.copy_(noise * x[0].numel() ** -0.5)
      else:
        x.copy_(0.3 * noise)
  return model.eval()


def forward(model, blocks, images):
  """What `model` answers: outputs of its blocks and of itself, as NumPy."""
  found = []
  keep = lambda module, args, out: found.append(
      out[0] if isinstance(out, tuple) else out)
  hooks = [block.register_forward_hook(keep) for block in blocks]
  with torch.no_grad():
    out = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
  for hook in hooks:
    hook.remove()
  return np.stack([x.numpy() for x in found]), out


def images():
  return np.random.default_rng(1).normal(size=(2, IMAGE, IMAGE, 3))


def expect(name, blocks, **heads):
  heads = {k: v.numpy() for k, v in heads.items() if v is not None}
  arrays = {'images': images(), 'blocks': blocks, **heads}
  np.savez(GOLDEN / f'{name}_expected.npz',
           **{k: np.float32(v) for k, v in arrays.items()})


def timm_model(name, **overrides):
  return timm.create_model(
      name, img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH,
      num_heads=HEADS, mlp_ratio=HIDDEN / WIDTH, num_classes=CLASSES,
      **overrides)


def timm_heads(model, x):
  """Both heads of a distilled model, which averages them otherwise."""
  if not hasattr(model, 'set_distilled_training'):
    return dict(cls=model(x))
  features = model.forward_features(x)
  return dict(cls=model.head(features[:, 0]),
              dist=model.head_dist(features[:, 1]))


def make_timm(golden, name):
  model = randomize(timm_model(name), seed=_seed(golden))
  safetensors.torch.save_file(model.state_dict(),
                              GOLDEN / f'{golden}.safetensors')
  expect_timm(golden, model)


def expect_timm(golden, model):
  model = model.double()
  blocks, out = forward(model, model.blocks, images())
  with torch.no_grad():
    heads = timm_heads(model, torch.from_numpy(images().transpose(0, 3, 1, 2)))
  mean = sum(heads.values()) / len(heads)
  torch.testing.assert_close(mean, out)
  expect(golden, blocks, **heads)


def make_hugging_face(golden, kind, config_kind):
  model = randomize(kind(config_kind(
      image_size=IMAGE, patch_size=PATCH, hidden_size=WIDTH,
      num_hidden_layers=DEPTH, num_attention_heads=HEADS,
      intermediate_size=HIDDEN, num_labels=CLASSES)), seed=_seed(golden))
  model.save_pretrained(GOLDEN / golden)
  (GOLDEN / golden / 'model.safetensors').rename(
      GOLDEN / f'{golden}.safetensors')
  (GOLDEN / golden / 'config.json').unlink()
  (GOLDEN / golden).rmdir()
  model = model.double()
  body = getattr(model, model.base_model_prefix, model)
  blocks, out = forward(model, body.layers, images())
  cls = out.get('cls_logits', out.get('logits'))
  if cls is None:
    expect(golden, blocks)
  else:
    expect(golden, blocks, cls=cls, dist=out.get('distillation_logits'))


def make_npz(golden, big_vision):
  """A file in Google's layout, made here, as timm reads it."""
  rng = np.random.default_rng(_seed(golden))
  flat = {}

  def dense(name, *shape, num_out=1):
    fan_in = np.prod(shape[:-num_out])
    flat[f'{name}/kernel'] = rng.normal(size=shape) * fan_in ** -0.5
    flat[f'{name}/bias'] = rng.normal(size=shape[-num_out:]) * 0.3

  def norm(name):
    flat[f'{name}/scale'] = 1 + 0.3 * rng.normal(size=WIDTH)
    flat[f'{name}/bias'] = 0.3 * rng.normal(size=WIDTH)

  attention, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
  num_patches = (IMAGE // PATCH) ** 2
  flat['cls'] = rng.normal(size=(1, 1, WIDTH))
  flat['pos_embedding' if big_vision else
       'Transformer/posembed_input/pos_embedding'] = rng.normal(
           size=(1, num_patches + (not big_vision), WIDTH)) * 0.5
  dense('embedding', PATCH, PATCH, 3, WIDTH)
  for i in range(DEPTH):
    block = f'Transformer/encoderblock_{i}'
    norm(f'{block}/LayerNorm_0')
    name = f'{block}/MultiHeadDotProductAttention_{attention}'
    for part in ('query', 'key', 'value'):
      dense(f'{name}/{part}', WIDTH, HEADS, WIDTH // HEADS, num_out=2)
    dense(f'{name}/out', HEADS, WIDTH // HEADS, WIDTH)
    norm(f'{block}/LayerNorm_{norm2}')
    dense(f'{block}/MlpBlock_{mlp}/Dense_0', WIDTH, HIDDEN)
    dense(f'{block}/MlpBlock_{mlp}/Dense_1', HIDDEN, WIDTH)
  norm('Transformer/encoder_norm')
  dense('head', WIDTH, CLASSES)
  flat = {('params/' if big_vision else '') + k: np.float32(v)
          for k, v in flat.items()}
  np.savez(GOLDEN / f'{golden}.npz', **flat)
  model = timm_model('vit_tiny_patch16_224', no_embed_class=big_vision).eval()
  model.load_pretrained(str(GOLDEN / f'{golden}.npz'))
  expect_timm(golden, model)


def make_positions():
  """A 7 x 7 grid after one class position, resized up and down."""
  grid = torch.randn((1, 1 + 49, 3), generator=torch.Generator().manual_seed(0))
  resized = {str(n): timm.layers.resample_abs_pos_embed(
      grid, [n, n], num_prefix_tokens=1, antialias=False).numpy()
             for n in (7, 5, 12)}
  np.savez(GOLDEN / 'positions_expected.npz', **resized)


def main():
  GOLDEN.mkdir(exist_ok=True)
  make_timm('timm_vit', 'vit_tiny_patch16_224')
  make_timm('timm_deit', 'deit_tiny_patch16_224')
  make_timm('timm_deit_distilled', 'deit_tiny_distilled_patch16_224')
  t = transformers
  make_hugging_face('hf_vit', t.ViTForImageClassification, t.ViTConfig)
  make_hugging_face('hf_vit_model', t.ViTModel, t.ViTConfig)
  make_hugging_face('hf_deit', t.DeiTForImageClassification, t.DeiTConfig)
  make_hugging_face('hf_deit_teacher', t.DeiTForImageClassificationWithTeacher,
                    t.DeiTConfig)
  make_npz('augreg', big_vision=False)
  make_npz('big_vision', big_vision=True)
  make_positions()


if __name__ == '__main__':
  main()

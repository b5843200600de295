"""LeViT and CrossViT: what timm computes, we compute; their files in and out.

The checkpoints in golden/ were written by make_golden_streams.py.
"""

import pathlib
import re

import adavit_jax
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models import levit
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.weights import positions
import efficient
import jax
import jax.numpy as jnp
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / 'golden'
KEY = jax.random.key(0)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODELS = dict(
    timm_levit=lambda **more: efficient.levit(**{**dict(
        image_size=48, channels=3, num_classes=5, patch_size=16,
        widths=(8, 12, 16), depths=(1, 2, 1), heads=(2, 4, 3), key_dim=4),
        **more}),
    timm_crossvit=lambda **more: efficient.crossvit(**{**dict(
        image_size=30, channels=3, num_classes=5, patch_sizes=(3, 4),
        scales=(1., 28 / 30), widths=(8, 16), depth=2, mlp_ratio=3.), **more}),
    timm_crossvit_dagger=lambda **more: efficient.crossvit(**{**dict(
        image_size=36, channels=3, num_classes=5, patch_sizes=(12, 16),
        scales=(1., 32 / 36), widths=(8, 16), depth=1, mlp_ratio=3.,
        num_stages=1, stem='conv'), **more}))
LEVIT, CROSSVIT = 'timm_levit', 'timm_crossvit'


def path(name):
  return GOLDEN / f'{name}.safetensors'


def expected(name):
  with np.load(GOLDEN / f'{name}_expected.npz') as file:
    return dict(file)


def answers(model, params, images):
  """Features behind each stage, and `Logits`, at inference."""
  params, features, start = models.fold(model, params), [], 0
  x = modes.embed(model, params, images).x
  two_streams = isinstance(x, dict)
  stops = np.cumsum([model.depth + 1] * model.num_stages if two_streams else
                    np.array(model.depths) + 1)
  for stage, stop in enumerate(map(int, stops)):
    stop -= not two_streams  # no MLP lies before LeViT's first stage
    x = masked.run(model, params, x, start=start, stop=stop).x
    start, seen = stop, x
    if two_streams and stage < model.num_stages - 1:  # the bridge runs later
      seen = model.apply(
          {'params': params['backbone']}, x, stage, method='cross')
    features += [seen[s] for s in ('small', 'large')] if two_streams else [seen]
  return features, modes.classify(model, params, x)


def error(got, want):
  """Largest difference, in standard deviations of `want`."""
  assert got.shape == want.shape
  return np.abs(np.asarray(got, np.float64) - want).max() / want.std()


def check(model, params, want):
  features, logits = jax.jit(answers, static_argnums=0)(
      model, params, want['images'])
  errors = [error(x, want[f'feature_{i}']) for i, x in enumerate(features)]
  assert f'feature_{len(features)}' not in want
  errors.append(error(logits.cls, want['cls']))
  if 'dist' in want:
    errors.append(error(logits.dist, want['dist']))
  assert max(errors) < 1e-4
  return max(errors)


def same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize('name', [
    LEVIT, CROSSVIT,
    pytest.param('timm_crossvit_dagger', marks=pytest.mark.nightly)])
def test_features_and_logits_equal_timms(name):
  model, want = MODELS[name](), expected(name)
  params = weights.load(model, path(name), KEY)
  check(model, params, want)
  if name == CROSSVIT:  # the plain forward pass
    got = jax.jit(model.apply)({'params': params['backbone']}, want['images'])
    assert error(got.cls, want['cls']) < 1e-4


@pytest.mark.parametrize('name', MODELS)
def test_exported_names_and_arrays_are_timms(tmp_path, name):
  model = MODELS[name]()
  params = weights.load(model, path(name), KEY)
  weights.save(tmp_path / 'a.safetensors', model, params)
  want = weights.read(path(name)).tensors
  want = {k: x for k, x in want.items() if 'num_batches_tracked' not in k}
  same(weights.read(tmp_path / 'a.safetensors').tensors, want)
  same(weights.load(model, tmp_path / 'a.safetensors', KEY), params)


def _authors_levit():
  """The names of the authors' files in order, for depths 1, 2 and 1."""
  norm = [f'bn.{part}' for part in (
      'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')]
  layer = lambda name: [f'{name}.{part}' for part in ('c.weight', *norm)]
  msa = lambda i: [f'blocks.{i}.m.attention_biases',
                   *layer(f'blocks.{i}.m.qkv'), *layer(f'blocks.{i}.m.proj.1')]
  mlp = lambda i: [*layer(f'blocks.{i}.m.0'), *layer(f'blocks.{i}.m.2')]
  down = lambda i: [
      f'blocks.{i}.attention_biases', *layer(f'blocks.{i}.kv'),
      *layer(f'blocks.{i}.q.1'), *layer(f'blocks.{i}.proj.1')]
  head = lambda name: [f'{name}.{part}'
                       for part in (*norm, 'l.weight', 'l.bias')]
  return [
      *(name for i in (0, 2, 4, 6) for name in layer(f'patch_embed.{i}')),
      *msa(0), *mlp(1), *down(2), *mlp(3), *msa(4), *mlp(5), *msa(6), *mlp(7),
      *down(8), *mlp(9), *msa(10), *mlp(11), *head('head'), *head('head_dist')]


def test_the_authors_levit():
  model = MODELS[LEVIT]()
  file, names = weights.read(path(LEVIT)), _authors_levit()
  order = expected(LEVIT)['names']
  assert len(order) == len(names)
  tensors = {new: file.tensors[old] for new, old in zip(names, order)}
  for name in [name for name in names if name.endswith('attention_biases')]:
    tensors[name.replace('biases', 'bias_idxs')] = np.zeros((2, 2), np.int64)
  same(weights.load(model, file._replace(tensors=tensors), KEY),
       weights.load(model, file, KEY))


def test_the_authors_crossvit():
  model, file = MODELS[CROSSVIT](), weights.read(path(CROSSVIT))
  tensors = {re.sub(r'^(pos_embed|cls_token)_', r'\1.', name): x
             for name, x in file.tensors.items()}
  assert 'cls_token.1' in tensors
  same(weights.load(model, file._replace(tensors=tensors), KEY),
       weights.load(model, file, KEY))


@pytest.mark.parametrize('name, heads', [
    (LEVIT, ('head', 'head_dist')),
    pytest.param(CROSSVIT, ('head_small', 'head_large'),
                 marks=pytest.mark.nightly)])
def test_other_classes_get_new_heads(name, heads):
  model = MODELS[name](num_classes=7)
  got = weights.load(model, path(name), KEY)
  kept = weights.load(MODELS[name](), path(name), KEY)
  for group, p in got['backbone'].items():
    if group in heads:
      assert p['kernel'].shape[1] == 7
      assert 0.01 < np.std(p['kernel']) < 0.03  # initialized
    else:
      same(p, kept['backbone'][group])
  same(got.get('batch_stats'), kept.get('batch_stats'))


def test_one_and_two_heads(caplog):
  one, two = MODELS[LEVIT](distillation=False), MODELS[LEVIT]()
  file, want = weights.read(path(LEVIT)), expected(LEVIT)
  with pytest.raises(ValueError, match='distillation=True'):
    weights.load(one, file, KEY)
  file = file._replace(tensors={
      name: x for name, x in file.tensors.items() if 'head_dist' not in name})
  params = weights.load(two, file, KEY)
  logits = jax.jit(modes.forward, static_argnums=0)(two, params, want['images'])
  np.testing.assert_array_equal(logits.total, logits.cls)
  np.testing.assert_array_equal(logits.dist, logits.cls)
  assert error(logits.cls, want['cls']) < 1e-4
  params = weights.load(one, file, KEY)
  assert not any('dist' in name for name in params['backbone'])
  weights.load(two.copy(num_classes=7), file, KEY)  # both heads are new
  assert caplog.text.count('copy of the class head') == 1


def test_another_image_size():
  """timm refuses LeViT's tables of other sizes, and so do we."""
  with pytest.raises(ValueError, match=r'image_size=48 \(not 64\)'):
    weights.load(MODELS[LEVIT](image_size=64), path(LEVIT), KEY)
  model = MODELS[CROSSVIT](image_size=60)
  got = weights.load(model, path(CROSSVIT), KEY)['backbone']
  tensors = weights.read(path(CROSSVIT)).tensors
  for i, name in enumerate(('small', 'large')):
    np.testing.assert_array_equal(
        got[f'pos_embedding_{name}'],
        positions.resize(tensors[f'pos_embed_{i}'], 1, model.side(i)))


def test_what_does_not_fit_is_named():
  with pytest.raises(ValueError, match=(
      r'patch_size=16 \(not 4\), image_size=48 \(not 96\)')):
    weights.load(MODELS[LEVIT](patch_size=4, image_size=96), path(LEVIT), KEY)
  with pytest.raises(ValueError, match=r'num_stages=2 \(not 3\)'):
    weights.load(MODELS[CROSSVIT](num_stages=3), path(CROSSVIT), KEY)
  with pytest.raises(ValueError, match=r'stem=conv \(not patch\)'):
    weights.load(MODELS['timm_crossvit_dagger'](stem='patch'),
                 path('timm_crossvit_dagger'), KEY)
  with pytest.raises(ValueError, match='timm LeViT layout, which a CrossViT'):
    weights.load(MODELS[CROSSVIT](), path(LEVIT), KEY)


def test_saved_heads_of_crossvit_are_checked(tmp_path):
  """No tensor shows them; LeViT's tables of biases do."""
  model = MODELS[CROSSVIT]()
  weights.save(tmp_path / 'a.safetensors', model, efficient.params(model))
  with pytest.raises(ValueError, match=r'num_heads=2 \(not 4\)'):
    weights.load(model.copy(num_heads=4), tmp_path / 'a.safetensors', KEY)
  with pytest.raises(ValueError, match=r'attention_biases \[2, 9\] in the f'):
    weights.load(MODELS[LEVIT](heads=(1, 2, 3), key_dim=8), path(LEVIT), KEY)


def test_preprocessing(tmp_path):
  for name, crop in ((LEVIT, 0.9), (CROSSVIT, 0.875)):
    got = weights.preprocessing(path(name))
    assert got == weights.Preprocessing(*IMAGENET, 'bicubic', crop)
  file = weights.read(path(CROSSVIT))
  file.tensors['pos_embed_0'] = np.zeros((1, 1 + 34 * 34, 8), np.float32)
  assert weights.preprocessing(file).crop == 1


NAMES = [name for name in models.names()
         if name.startswith(('levit', 'crossvit')) and 'cifar' not in name]


@pytest.mark.parametrize('name', NAMES)
def test_live_against_timm(tmp_path, name):
  torch = pytest.importorskip('torch')
  timm = pytest.importorskip('timm')
  golden = pytest.importorskip('make_golden_streams')
  home = golden.randomize(timm.create_model(name), seed=len(name))
  torch.save({'model': home.state_dict()}, tmp_path / 'a.pth')
  model = models.create(name, weights=str(tmp_path / 'a.pth'))
  params = adavit_jax.init_params(model, KEY)
  images = golden.images(model.image_size)
  want = dict(golden.answers(home, images), images=images)
  print(name, check(model, params, want))
  weights.save(tmp_path / 'a.safetensors', model, params)
  with torch.no_grad():
    for x in home.parameters():
      x.zero_()
    timm.models.load_checkpoint(home, str(tmp_path / 'a.safetensors'))
    home.train().eval()  # LeViT keeps the biases that it has looked up
    again = golden.answers(home, images)
  np.testing.assert_array_equal(again['cls'], want['cls'])

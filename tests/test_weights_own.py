"""Our own layout, in which every model is saved, and layouts a user adds."""

import re

import adavit_jax
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models.ravit import RAViT
from adavit_jax.weights import attributes
from adavit_jax.weights import families
from adavit_jax.weights import layout
from adavit_jax.weights import positions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_weights import path as golden
from test_weights import same
import tiny

KEY = jax.random.key(0)


class Counted(RAViT):
  """A user's backbone with batch statistics."""

  def init_variables(self, key):
    params, _ = super().init_variables(key)
    return params, {'encoders_0': {'seen': jnp.zeros((1, self.width))}}


def ravit(family=RAViT, **overrides):
  model = models.create('ravit_cifar_patch4_32', **{**dict(
      image_size=16, width=16, layers=(1, 2), num_heads=2), **overrides})
  fields = {name: getattr(model, name) for name in model.__dataclass_fields__
            if name not in ('parent', 'name')}
  return family(**fields)


def conv(**overrides):
  return tiny.model(stem='conv', **overrides)


@pytest.fixture
def file(tmp_path):
  return tmp_path / 'a.safetensors'


def save(file, model):
  params = tiny.params(model)
  weights.save(file, model, params)
  return params


def message(model, file):
  with pytest.raises(ValueError) as error:
    weights.load(model, file, KEY)
  return str(error.value)


@pytest.mark.parametrize('model, names', [
    (ravit(), ('backbone/encoders_0/qkv/kernel', 'backbone/pos_embedding_1')),
    (ravit(shared_stem=True), ('backbone/patch_embed/proj/bias',)),
    (conv(), ('backbone/encoders/fc1/bias', 'backbone/cls')),
    (ravit(Counted), ('backbone/cls', 'batch_stats/encoders_0/seen'))])
def test_round_trip_is_exact(file, model, names):
  params = save(file, model)
  assert {*names} < weights.read(file).tensors.keys()
  same(weights.load(model.copy(num_fixed=2), file, KEY), params)
  same(adavit_jax.init_params(model.copy(weights=str(file)), KEY), params)


def test_positions_are_resampled_to_another_image_size(file):
  model = conv()
  params = save(file, model)['backbone']
  larger = model.copy(image_size=2 * model.image_size)
  got = weights.load(larger, file, KEY)['backbone']
  side = larger.image_size // larger.patch_size
  np.testing.assert_array_equal(
      got.pop('pos_embedding'),
      positions.resize(params.pop('pos_embedding'), 1, side))
  same(got, params)


@pytest.mark.nightly
def test_added_exits_begin_anew(file):
  model = ravit(exits=((2, 'mlp'),))
  params = save(file, model)
  got = weights.load(model, file, KEY)
  same(got['backbone'], params['backbone'])
  same(got['heads'], models.init_params(model, KEY)['heads'])


def _sections(text):
  """{first word of a title: lines below it} of a message about tensors."""
  _, *parts = re.split(r'\n  (?=\w[^\n]*:\n)', text)
  return {part.split()[0]: part.split('\n', 1)[1] for part in parts}


def test_all_that_does_not_fit_is_in_one_message(file):
  save(file, ravit())
  text = message(ravit(layers=(1, 3), num_classes=5, width=16), file)
  assert text.startswith(str(file))
  (shapes,) = _sections(text).values()
  for name, both in (('encoders_1/fc1/bias', r'\[2, 64\].*\[3, 64\]'),
                     ('head_0/bias', r'\[10\].*\[5\]')):
    assert re.search(f'backbone/{name} {both}', shapes)
  found = _sections(message(ravit(layers=(0, 2), factors=(1, 1)), file))
  assert 'missing' not in found
  assert 'backbone/encoders_0/fc1/bias [1, 64]' in found['in']
  found = _sections(message(conv(), file))
  assert 'backbone/pos_embedding [1, 5, 16]' in found['missing']
  assert 'backbone/pos_embedding_0 [1, 5, 16]' in found['in']


@pytest.mark.parametrize('make', [ravit, conv])
def test_what_no_tensor_shows_is_checked(file, make):
  save(file, make(num_heads=4))
  text = message(make(num_heads=2), file)
  assert str(file) in text and 'num_heads=4 (not 2)' in text


@pytest.mark.parametrize('model, names', [
    (ravit(), 'RAViT'), (conv(), "ViT.*stem='conv'.*'patch'"),
    (ravit(Counted), 'Counted')])
def test_other_libraries_do_not_have_every_model(model, names):
  for name, title in (('timm_vit', 'timm / DeiT'), ('augreg', 'AugReg')):
    text = message(model, golden(name))
    assert re.search(f'{title}.* {names}.*weights.save', text)


@pytest.mark.parametrize('name, other, field', [
    ('evo_cifar_32', dict(alpha=0.9), 'alpha=0.5 .not 0.9'),
    ('vil_cifar_32', dict(exact_windows=True),
     'exact_windows=false .not true')])
def test_numbers_and_flags_that_no_tensor_shows_are_checked(
    file, name, other, field):
  save(file, models.create(name))
  assert re.search(field, message(models.create(name, **other), file))


def test_a_damaged_number_is_named(file):
  model = tiny.model()
  stored = weights.Checkpoint(
      file, {}, {'adavit_jax.num_heads': '{', 'adavit_jax.depth': '4'})
  with pytest.raises(ValueError, match='num_heads={ .not 2'):
    attributes.check(model, stored)


def test_equal_numbers_are_equal(file):
  save(file, ravit(factors=(2, 1)))
  weights.load(ravit(factors=(2., 1.)), file, KEY)


def test_preprocessing(file):
  # The second and third have layouts of other libraries.
  for model in (ravit(), tiny.model(), models.create('levit_cifar_32')):
    save(file, model)
    with pytest.raises(ValueError, match='config.data.mean'):
      weights.preprocessing(file)
  want = weights.Preprocessing((0.1,) * 3, (0.2,) * 3, 'bicubic', 1.)
  weights.save(file, ravit(), tiny.params(ravit()), preprocessing=want)
  assert weights.preprocessing(file) == want


def _theirs(model, names):
  """A layout that takes the encoders apart, as another library may."""
  del names
  like = families.native.FORMAT.tensors(model)
  found = [t._replace(name=f'theirs.{t.name}') for t in like
           if not t.leaf[0].startswith('encoders_1')]
  for t in like:
    if t.leaf[0] == 'encoders_1':
      found += [
          layout.Tensor(f'theirs.{i}.{".".join(t.leaf[1:])}',
                        ('encoders_1', i, *t.leaf[1:]), t.shape[1:])
          for i in range(t.shape[0])]
  return found


THEIRS = layout.Format(
    title='theirs', recognizes=lambda names: 'theirs.backbone/cls' in names,
    clean=dict, tensors=_theirs, heads=('head_1', 'head_0', 'norm_0'))


def test_a_users_layout(file, monkeypatch):
  monkeypatch.setattr(families, '_FAMILIES', {**families._FAMILIES})
  weights.register(Counted, (THEIRS,), where={'patch_size': 4})
  model = ravit(Counted)
  params = save(file, model)
  tensors = weights.read(file).tensors
  assert tensors['theirs.1.fc1.bias'].shape == (64,)
  assert 'theirs.batch_stats/encoders_0/seen' in tensors
  same(weights.load(model, file, KEY), params)
  text = message(ravit(Counted, patch_size=2), file)
  assert re.search('Counted.*patch_size=2.*4', text)
  other = ravit(Counted, num_classes=3)
  got, want = weights.load(other, file, KEY), models.init_params(other, KEY)
  for name in ('head_0', 'head_1', 'norm_0'):
    same(got['backbone'][name], want['backbone'][name])
  same(got['backbone']['norm_1'], params['backbone']['norm_1'])


def test_a_layout_that_loses_parameters_is_not_written(file, monkeypatch):
  monkeypatch.setattr(families, '_FAMILIES', {})
  weights.register(Counted, (THEIRS._replace(
      tensors=lambda *args: _theirs(*args)[1:]),))
  with pytest.raises(ValueError, match='theirs.*Counted'):
    save(file, ravit(Counted))
  assert not file.exists()

"""CrossViT: its numbers, its resizing, its streams, and every mode."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import bicubic
from adavit_jax.models import plan
from adavit_jax.weights import positions
import efficient
import jax.numpy as jnp
import numpy as np
import pytest

GMACS = dict(
    crossvit_tiny_240='1.563', crossvit_small_240='5.616',
    crossvit_base_240='21.191', crossvit_9_240='1.841',
    crossvit_15_240='5.791', crossvit_18_240='9.031',
    crossvit_9_dagger_240='1.979', crossvit_15_dagger_240='6.112',
    crossvit_18_dagger_240='9.473', crossvit_15_dagger_408='21.399',
    crossvit_18_dagger_408='32.409')


@pytest.mark.parametrize('name', GMACS)
def test_macs_of_the_paper(name):
  assert f'{cost.of(models.create(name)).dense / 1e9:.3f}' == GMACS[name]


def test_the_contract_is_kept():
  models.check_backbone(efficient.crossvit(
      exits=((1, 'vit'), (3, 'cnn_add'), (4, 'mlp'))))


# Behind an encoder of each stream, and in the middle of 'large'.
@pytest.mark.parametrize('num_fixed', [
    pytest.param(0, marks=pytest.mark.nightly), 1,
    pytest.param(2, marks=pytest.mark.nightly),
    pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.nightly
def test_modes_agree(num_fixed):
  model = efficient.crossvit(num_fixed=num_fixed)
  assert plan.num_layers(model) == (6 - num_fixed, 6 - num_fixed)
  efficient.check_modes(model)


@pytest.mark.nightly
def test_exits_agree_in_every_mode():
  """In both streams, before and after the policy, and after a bridge."""
  efficient.check_exits(efficient.crossvit(
      num_fixed=2, exits=((1, 'mlp'), (3, 'cnn_add'), (4, 'mlp'))))


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  efficient.check_bfloat16(efficient.crossvit(dtype='bfloat16'))


def test_macs_are_those_of_the_program():
  efficient.check_macs(efficient.crossvit(num_fixed=1))


@pytest.mark.nightly
def test_macs_of_the_convolutional_stem_are_those_of_the_program():
  efficient.check_macs(models.create('crossvit_9_dagger_240', channels=1))


def test_exits_and_policies_read_the_stream_before_them():
  model = efficient.crossvit()
  assert [plan.tokens_at(model, i).width for i in range(7)] == [
      4, 4, 8, 8, 4, 8, 8]
  x = model.embed(efficient.params(model)['backbone'],
                  efficient.images(model), None)[0]
  for i in range(2):
    assert model.tokens(x, model.at(i)) is x[('small', 'large')[i]]


@pytest.mark.parametrize('num_in, num_out', [(15, 14), (17, 16), (5, 12)])
def test_resizing_is_the_product_with_torchs_matrix(num_in, num_out):
  """`test_weights.py` holds the matrix against torch."""
  x = np.random.default_rng(0).normal(size=(2, num_in, num_in, 3))
  matrix = positions.interpolation(num_in, num_out)
  want = np.einsum('ai,bj,nijc->nabc', matrix, matrix, x)
  got = bicubic.resize(jnp.float32(x), num_out)
  np.testing.assert_allclose(got, want, atol=2e-6)
  assert bicubic.resize(x, num_in) is x


@pytest.mark.parametrize('overrides, field', [
    (dict(patch_sizes=(3, 3)), r'patch_sizes=\(3, 3\).*8 pixels'),
    (dict(patch_sizes=4), 'patch_sizes=4'),
    (dict(patch_sizes=(2, 4)), r'6 pixels of image_size=8 at scales'),
    (dict(scales=(1., 0.)), r'scales=\(1.0, 0.0\)'),
    (dict(scales=(1., float('inf'))), r'scales=\(1.0, inf\)'),
    (dict(widths=(4,)), r'widths=\(4,\)'),
    (dict(widths=(4, 9)), r'num_heads=2.*9 of widths'),
    (dict(num_heads=3), 'num_heads=3'),
    (dict(depth=0), 'depth=0'),
    (dict(num_stages=0), 'num_stages=0'),
    (dict(mlp_ratio=0.), 'mlp_ratio=0'),
    (dict(mlp_ratio='2'), "mlp_ratio='2'"),
    (dict(stem='convs'), "stem='convs'"),
    (dict(stem='conv'), r"stem='conv'.*patch_sizes=\(2, 3\)"),
    (dict(widths=(8, 8), scales=(1., 1.), patch_sizes=(2, 2)), 'widths'),
    (dict(num_fixed=6), 'num_fixed=6'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    efficient.crossvit(**overrides)

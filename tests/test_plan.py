"""What the plans of a ViT and of a RAViT say, against what is written here."""

from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import Tokens
from adavit_jax.models.encoder import macs
import jax
import numpy as np
import pytest
import tiny


@pytest.fixture(scope='module')
def vit():
  return tiny.model(
      depth=5, num_fixed=2, distillation=True,
      exits=((1, 'mlp'), (2, 'cnn_add'), (2, 'vit'), (4, 'resmlp')))


@pytest.fixture(scope='module')
def ravit():
  """Branches of 2 and 3 encoders, 5 and 17 tokens; one between is absent."""
  return models.create(
      'ravit_cifar_patch4_32', image_size=16, channels=1, width=8, num_heads=2,
      mlp_ratio=2., num_classes=3, layers=(2, 0, 3), factors=(2, 1.5, 1),
      exits=((1, 'mlp'), (3, 'vit')))


def _parts(model, start, stop):
  """'bridge', or (group, first row, rows) of a stack."""
  return ['bridge' if isinstance(part, Bridge) else
          (part.group, part.start, part.length)
          for part in plan.segment(model, start, stop)]


def test_segments_of_a_vit(vit):
  assert plan.num_encoders(vit) == 5
  for start in range(6):
    assert _parts(vit, start, start) == []
    for stop in range(start + 1, 6):
      assert _parts(vit, start, stop) == [('encoders', start, stop - start)]


def test_segments_of_a_ravit(ravit):
  assert plan.num_encoders(ravit) == 5
  assert _parts(ravit, 0, 5) == [
      ('encoders_0', 0, 2), 'bridge', ('encoders_2', 0, 3)]
  # A bridge belongs to the encoder that follows it.
  assert _parts(ravit, 0, 2) == [('encoders_0', 0, 2)]
  assert _parts(ravit, 2, 3) == ['bridge', ('encoders_2', 0, 1)]
  assert _parts(ravit, 3, 5) == [('encoders_2', 1, 2)]
  assert _parts(ravit, 1, 4) == [
      ('encoders_0', 1, 1), 'bridge', ('encoders_2', 0, 2)]
  for place in range(6):
    assert _parts(ravit, place, place) == []


@pytest.mark.parametrize('name', ['vit', 'ravit'])
def test_segments_between_any_places_make_the_plan(name, request):
  model = request.getfixturevalue(name)
  whole = plan.segment_macs(model, 0, 5)
  for a in range(6):
    for b in range(a, 6):
      cuts = [(0, a), (a, b), (b, 5)]
      assert sum(plan.segment_macs(model, *cut) for cut in cuts) == whole
      bridges = [part for cut in cuts for part in _parts(model, *cut)]
      assert bridges.count('bridge') == (name == 'ravit')


def test_exits_of_a_vit(vit):
  assert plan.exits(vit) == [
      (1, 'mlp', 0), (2, 'cnn_add', 1), (2, 'vit', 2), (4, 'resmlp', 3),
      (5, '', 0)]
  assert plan.spans(vit) == [(0, 1), (1, 2), (2, 2), (2, 4), (4, 5)]
  assert [plan.stage_of(vit, place) for place in range(5)] == [0, 1, 3, 3, 4]
  assert plan.exits(tiny.model()) == [(4, '', 0)]
  assert plan.spans(tiny.model()) == [(0, 4)]


def test_exits_of_a_ravit(ravit):
  assert plan.exits(ravit) == [
      (1, 'mlp', 0), (2, '', 0), (3, 'vit', 1), (5, '', 1)]
  assert plan.spans(ravit) == [(0, 1), (1, 2), (2, 3), (3, 5)]
  assert [plan.stage_of(ravit, place) for place in range(5)] == [0, 1, 2, 3, 3]
  # An added exit comes before the backbone's own.
  both = ravit.clone(exits=((2, 'mlp'), (2, 'vit')))
  assert plan.exits(both) == [(2, 'mlp', 0), (2, 'vit', 1), (2, '', 0),
                              (5, '', 1)]


def test_how_many_tokens_are_read_behind_a_place(vit, ravit):
  """Of a ViT by the last exit alone, of a RAViT also by what follows."""
  assert [plan.read_at(vit, place) for place in range(6)] == [None] * 5 + [2]
  assert plan.read_last(vit) == 2 and plan.read_last(tiny.model()) == 1
  assert [plan.read_at(ravit, place) for place in range(6)] == [
      None, None, 1, None, None, 1]
  added = ravit.clone(exits=((2, 'mlp'),))
  assert plan.read_at(added, 2) is None and plan.read_last(added) == 1


def test_tokens_at_a_place(vit, ravit):
  for place in range(6):
    assert plan.tokens_at(vit, place) == Tokens(16, 6, 2, (2, 2), 2, 32)
  small, large = Tokens(8, 5, 1, (2, 2), 2, 16), Tokens(8, 17, 1, (4, 4), 2, 16)
  # Where a branch ends the tokens are still its own.
  assert [plan.tokens_at(ravit, place) for place in range(6)] == (
      3 * [small] + 3 * [large])
  for model in (vit, ravit):
    with pytest.raises(ValueError, match='^place=6'):
      plan.tokens_at(model, 6)


def test_layers_that_may_be_dropped(vit, ravit):
  assert plan.num_layers(vit) == Actions(3, 3)
  assert plan.num_layers(ravit) == Actions(4, 4)
  assert plan.num_layers(ravit, 1, 3) == Actions(2, 2)
  for model in (vit, ravit):
    for start in range(6):
      for stop in range(start, 6):
        assert plan.num_layers(model, start, stop) == 2 * (stop - start,)
    for num_fixed in range(5):
      other = model.clone(num_fixed=num_fixed)
      assert plan.num_layers(other) == 2 * (5 - num_fixed,)


def test_actions_of_a_segment(vit, ravit):
  msa, mlp = np.arange(8).reshape(2, 4), 10 + np.arange(8).reshape(2, 4)
  for start, stop, columns in ((1, 5, [0, 1, 2, 3]), (1, 2, [0]), (2, 3, [1]),
                               (3, 5, [2, 3]), (2, 2, []), (5, 5, [])):
    got = plan.cut(ravit, Actions(msa, mlp), start, stop)
    np.testing.assert_array_equal(got.msa, msa[:, columns])
    np.testing.assert_array_equal(got.mlp, mlp[:, columns])
  shared = plan.cut(vit, Actions(np.arange(3), 5 + np.arange(3)), 3, 5)
  np.testing.assert_array_equal(shared, [[1, 2], [6, 7]])


def test_layers_by_stage_and_what_they_cost(vit, ravit):
  np.testing.assert_array_equal(plan.layer_stages(vit), [[3, 3, 4]] * 2)
  np.testing.assert_array_equal(
      plan.layer_macs(vit), np.tile(macs(6, 16, 32), (3, 1)).T)
  np.testing.assert_array_equal(plan.layer_stages(ravit), [[1, 2, 3, 3]] * 2)
  small, large = macs(5, 8, 16), macs(17, 8, 16)
  np.testing.assert_array_equal(
      plan.layer_macs(ravit), np.transpose([small, large, large, large]))
  np.testing.assert_array_equal(
      plan.layer_stages(ravit.clone(num_fixed=3)), [[3, 3]] * 2)


def test_the_stage_that_owns_parameters(vit, ravit):
  """What is not named belongs to the embedding."""
  assert plan.owners(vit) == dict(
      encoders=[0, 1, 3, 3, 4], norm=4, head=4, head_dist=4)
  assert plan.groups(vit) == {'encoders'}
  assert plan.owners(ravit) == dict(
      encoders_0=[0, 1], norm_0=1, head_0=1, patch_embed_2=2,
      pos_embedding_2=2, encoders_2=[2, 3, 3], norm_2=3, head_2=3)
  assert plan.groups(ravit) == {'encoders_0', 'encoders_2'}
  # A stem that all branches share is that of the embedding.
  assert 'patch_embed' not in plan.owners(ravit.clone(shared_stem=True))


@pytest.mark.parametrize('name', ['vit', 'ravit'])
def test_owners_are_groups_of_the_parameters(name, request):
  model = request.getfixturevalue(name)
  shapes = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))['backbone']
  owners = plan.owners(model)
  assert set(owners) < set(shapes)
  assert set(shapes) - set(owners) == (
      {'cls', 'dist', 'patch_embed', 'pos_embedding'} if name == 'vit' else
      {'cls', 'patch_embed_0', 'pos_embedding_0'})
  for group in plan.groups(model):
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(shapes[group])}
    assert rows == {len(owners[group])}


def test_who_looks_at_the_images_again(vit, ravit):
  assert not plan.rereads_images(vit)
  assert [plan.rereads_images(ravit.clone(num_fixed=i)) for i in range(5)] == [
      True, True, True, False, False]


def test_what_a_segment_costs(ravit):
  small, large = sum(macs(5, 8, 16)), sum(macs(17, 8, 16))
  # 16 patches of 4 x 4 pixels to 8 numbers; the image has its full size.
  bridge = 16 * 16 * 8
  assert plan.segment_macs(ravit, 0, 2) == 2 * small
  assert plan.segment_macs(ravit, 2, 3) == bridge + large
  assert plan.segment_macs(ravit, 1, 5) == small + bridge + 3 * large

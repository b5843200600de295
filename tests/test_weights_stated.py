"""What the config.json beside weights states: architecture, images, classes."""

import json
import logging
import shutil
from types import SimpleNamespace

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models.evo_deit import EvoDeiT
from adavit_jax.models.vit import ViT
from adavit_jax.runs import pretrained
from adavit_jax.weights import convert
from adavit_jax.weights import labels
from adavit_jax.weights import stated
import efficient
import jax
import numpy as np
import pytest
from test_weights import golden_model
from test_weights import path
import tiny

KEY = jax.random.key(0)
HF = dict(model_type='vit', hidden_size=16, num_hidden_layers=3,
          num_attention_heads=2, intermediate_size=32, hidden_act='gelu',
          layer_norm_eps=1e-12, image_size=12, patch_size=4, num_channels=3,
          qkv_bias=True)
CFG = dict(mean=[0.1, 0.2, 0.3], std=[0.4] * 3, interpolation='bilinear',
           crop_pct=0.8)
DVT = models.create('dvt_deit_small_224', width=12, depth=2, num_heads=3)


def timm(**args):
  return dict(architecture='a', model_args=args, pretrained_cfg=CFG)


@pytest.fixture
def beside(tmp_path):
  """Writes a config.json, and returns the path of golden weights beside it."""
  def write(config, name='hf_vit'):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    shutil.copy(path(name), tmp_path / path(name).name)
    return tmp_path / path(name).name
  return write


def check(beside, model, config):
  file = beside(config)
  stated.check(model, weights.Checkpoint(file, {}, {}), patches=9)


@pytest.mark.parametrize('model, config', [
    (golden_model(''), HF),
    (golden_model(''), dict(HF, layer_norm_eps=1e-5, hidden_act='gelu_python')),
    (golden_model(''), timm(
        num_heads=2, embed_dim=16, act_layer='nn.GELU', norm_layer='layernorm',
        global_pool='token', mlp_ratio=2, img_size=[24, 24], qk_scale=None)),
    # The name says 3 heads of a model that is wider.
    (golden_model(''), dict(timm(), architecture='vit_tiny_patch16_224')),
    (efficient.levit(), timm(
        num_heads=[2, 4], act_layer='hard_swish', global_pool='avg')),
    (efficient.crossvit(), timm(num_heads=[2, 2], img_scale=[1, 0.75],
                                depth=[[1, 2, 0]] * 2, mlp_ratio=[2, 2, 1])),
    (efficient.shuffle(), dict(hidden_act='relu6', num_heads=[2, 3])),
    (efficient.vil(), dict(arch='l1,h2,d8,n1_l2,h3,d12,n2', ln_eps=1e-6)),
    (DVT, timm(num_heads=3)),
    (tiny.model(), {'a': {'b': [1]}}),
])
def test_what_agrees_is_no_obstacle(beside, model, config):
  check(beside, model, config)


@pytest.mark.parametrize('model, config, both', [
    (golden_model(''), dict(HF, num_attention_heads=4),
     'num_attention_heads=4 .*num_heads=2'),
    (golden_model(''), dict(HF, hidden_act='gelu_new'), "'gelu_new' .*'gelu'"),
    (golden_model(''), dict(HF, layer_norm_eps=1e-3), '0.001 .*1e-06'),
    (golden_model(''), dict(HF, qkv_bias=False), 'qkv_bias=False .*True'),
    (golden_model(''), dict(HF, image_size=24), '36 patches .*9'),
    (golden_model(''), dict(HF, image_size=[36, 4]), r'\[36, 4\] .*size=12'),
    (golden_model(''), dict(HF, patch_size=2), '_size=2 .*_size=4'),
    (golden_model(''), dict(HF, hidden_size=8), '_size=8 .*width=16'),
    (golden_model(''), timm(num_heads=4), 'model_args.num_heads=4 .*2'),
    (golden_model(''), timm(global_pool='avg'), "'avg' .*'token'"),
    (golden_model(''), timm(block_fn='ResPostBlock'), 'ResPostBlock'),
    (golden_model(''), timm(qk_scale=0.25), 'qk_scale=0.25 .*0.35'),
    (golden_model(''), dict(architecture='a', global_pool='avg', **CFG),
     "'avg' .*'token'"),
    (golden_model(''), dict(timm(), architecture='vit_x_quickgelu_224'),
     "quick_gelu' .*'gelu'"),
    # As facebookresearch/moco-v3 has it: ViT-S of 12 heads.
    (models.create('vit_small_patch16_224', num_heads=12),
     dict(timm(), architecture='vit_small_patch16_224.x'), '=6 .*=12'),
    (golden_model(''), {'model': {'heads': {'num_heads': 8}}}, '=8 .*=2'),
    (efficient.levit(), timm(act_layer='silu'), "'silu' .*'hard_swish'"),
    (efficient.levit(), dict(timm(), architecture='levit_512'), "'silu' "),
    (efficient.crossvit(), timm(num_heads=[4, 4]), r'\[4, 4\] .*=2'),
    (efficient.crossvit(), timm(crop_scale=True), 'True .*False'),
    (efficient.shuffle(), dict(hidden_act='gelu'), "'gelu' .*'relu6'"),
    (efficient.vil(), dict(arch='l1,h4,d8,n1_l2,h3,d12,n2'), r'\(4, 3\) '),
    (efficient.vil(), dict(sw_exact=True), 'True .*False'),
    (DVT, timm(num_heads=6), '=6 .*=3'),
])
def test_contradictions_are_refused(beside, model, config, both):
  with pytest.raises(ValueError, match=f'config.json .*{both}'):
    check(beside, model, config)


def test_weights_are_compared_before_they_are_used(beside):
  file = beside(dict(HF, num_attention_heads=4))
  with pytest.raises(ValueError, match='num_attention_heads'):
    weights.load(golden_model(''), file, KEY)


def test_every_family_of_other_libraries_is_compared():
  """A model without facts would pass with any activation."""
  for kind, entry in weights.families._FAMILIES.items():
    name = next(n for n in models.names()
                if type(models.create(n)) is kind and entry.formats)
    facts = entry.computes(models.create(name))
    # EvoDeiT also begins with the weights of DeiT, whose pooling is another.
    want = {'activation'} if kind is EvoDeiT else {'activation', 'pool'}
    assert want <= facts.keys(), kind
    assert kind is not ViT or facts['epsilon'] == 1e-6


def test_timms_old_form_is_read_as_timm_does(beside):
  flat = dict(architecture='vit_small_patch16_224', num_classes=10,
              input_size=[3, 224, 224], **CFG)
  want = ((0.1, 0.2, 0.3), (0.4,) * 3, 'bilinear', 0.8)
  assert weights.preprocessing(beside(flat, 'timm_vit')) == want
  for key in ('interpolation', 'crop_pct'):
    del flat[key]
  assert weights.preprocessing(beside(flat, 'timm_vit')) == (
      *want[:2], 'bicubic', 0.875)
  del flat['std']
  with pytest.raises(ValueError, match='config.json.*std'):
    weights.preprocessing(beside(flat, 'timm_vit'))


def test_preprocessing_of_weights_without_encoders(beside):
  """A stem is enough to tell whose weights they are."""
  file = weights.read(beside(timm(), 'timm_vit'))
  name = 'patch_embed.proj.weight'
  assert weights.preprocessing(file._replace(
      tensors={name: file.tensors[name]})).std == (0.4,) * 3


@pytest.mark.parametrize('config', [
    {'mean': [0.1] * 3, 'prep': {'size': 8}}, {'architecture': 'a'}])
def test_other_forms_are_warned_about(beside, config, caplog):
  file = beside(config, 'timm_vit')
  with caplog.at_level(logging.WARNING, 'absl'):
    assert weights.preprocessing(file).mean == (0.5,) * 3
  assert f'{file.parent / "config.json"} ' in caplog.text
  assert all(key in caplog.text for key in config)


@pytest.mark.parametrize('text', [b'{"mean": [0', b'[1]', b'\xff\xfe{'])
def test_a_config_that_is_cut_or_no_object(beside, text):
  file = beside({})
  (file.parent / 'config.json').write_bytes(text)
  for read in (weights.preprocessing,
               lambda file: weights.load(golden_model(''), file, KEY)):
    with pytest.raises(ValueError, match='config.json'):
      read(file)


def test_hugging_faces_factor_of_pixels(beside):
  fields = dict(size=[], resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                rescale_factor=1 / 127.5)
  def read(**size):
    file = beside(HF)
    (file.parent / 'preprocessor_config.json').write_text(
        json.dumps({**fields, 'size': size}))
    return weights.preprocessing(file)
  # 2x - 0.5 over 0.5 is x - 0.25 over 0.25.
  np.testing.assert_allclose(read(height=12, width=12).mean, (0.25,) * 3)
  with pytest.raises(ValueError, match='size.*square'):
    read(height=12, width=24)


NAMES = ('ant', 'bee', 'cat', 'dog', 'Great_Auk')


def of(names, **fields):
  return {**HF, 'id2label': {str(i): n for i, n in enumerate(names)}, **fields}


@pytest.mark.parametrize('config, order', [
    (of(NAMES), None),
    (of(['LABEL_0', 'LABEL_1', 'LABEL_2', 'LABEL_3', 'LABEL_4']), None),
    (of(['great auk', 'Dog', 'cat', 'bee, wild bee', 'ant']), [4, 3, 2, 1, 0]),
    (dict(timm(), label_names=[*'xyzuv'], label_descriptions=dict(
        x='bee', y='ant', z='cat', u='dog', v='great auk')), [1, 0, 2, 3, 4]),
    (dict(architecture='a', labels=['dog', 'ant', 'bee', 'cat', 'great auk'],
          **CFG), [1, 2, 3, 0, 4]),
    ({'class_to_idx': dict(dog=0, ant=1, bee=2, cat=3, great_auk=4)},
     [1, 2, 3, 0, 4]),
])
def test_names_of_classes_are_compared(beside, config, order):
  checkpoint = weights.Checkpoint(beside(config), {}, {})
  assert labels.order(checkpoint, NAMES)[0] == order


def test_names_inside_a_file(tmp_path):
  checkpoint = weights.Checkpoint(tmp_path / 'a.pth', {}, dict(
      class_to_idx='{"dog": 0, "ant": 1}'))
  assert labels.order(checkpoint, ('ant', 'dog'))[0] == [1, 0]


def test_a_head_is_brought_into_the_datas_order(beside, caplog):
  model, there = golden_model(''), (4, 2, 0, 1, 3)
  file = beside(of([NAMES[i] for i in there]))
  plain = weights.load(model, file, KEY)['backbone']
  got = weights.load(model, file, KEY, class_names=NAMES)['backbone']
  assert 'id2label' in caplog.text
  for i, name in enumerate(there):
    np.testing.assert_array_equal(got['head']['kernel'][:, name],
                                  plain['head']['kernel'][:, i])
    assert got['head']['bias'][name] == plain['head']['bias'][i]
  np.testing.assert_array_equal(got['cls'], plain['cls'])


def test_names_that_agree_in_part_need_a_new_head(beside, monkeypatch):
  file = beside(of(['bee', 'ant', 'cat', 'eel', 'fox']))
  with pytest.raises(ValueError, match="'ant'.*id2label.*head"):
    weights.load(golden_model(''), file, KEY, class_names=NAMES, new_head=False)
  new = dict(kernel=np.ones((16, 5)), bias=np.ones(5))
  monkeypatch.setattr(convert, '_fresh', lambda model, names, key: dict(
      backbone=dict.fromkeys(names, new)))
  got = weights.load(golden_model(''), file, KEY, class_names=NAMES)
  assert got['backbone']['head'] is new


def test_other_names_are_warned_about(beside, caplog):
  file = beside(of(['1', '2', '3', '4', '5']))
  assert labels.order(weights.Checkpoint(file, {}, {}), NAMES) == (None, '')
  assert "'ant'" in caplog.text and 'id2label' in caplog.text


@pytest.mark.parametrize('accuracy, warns', [(0.02, True), (0.9, False)])
def test_a_head_near_chance_is_warned_about(caplog, accuracy, warns):
  dataset = tiny.dataset()
  correct = np.arange(16) < 16 * accuracy
  trainer = SimpleNamespace(
      config=tiny.get_config(), dataset=dataset,
      system=SimpleNamespace(target=None),
      evaluator=SimpleNamespace(dense=lambda *args: SimpleNamespace(
          correct=correct, accuracy=correct.mean())))
  trainer.config.phases = ('warm_start',)
  pretrained.warn_near_chance(trainer, {})
  assert ('held-out' in caplog.text) == warns
  caplog.clear()
  trainer.config.phases = ('dense',)
  pretrained.warn_near_chance(trainer, {})
  assert not caplog.text

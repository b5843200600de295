"""Crops and augmentations beside torchvision's and timm's, where they import.

They do with torch 2.13.0, torchvision 0.28.0 and timm 1.0.31, without a GPU.
"""

from adavit_jax.data import crops
from adavit_jax.data import erasing
from adavit_jax.data import rand_augment
import jax
import numpy as np
from PIL import Image
import pytest
from scipy import stats

pytestmark = pytest.mark.nightly
FILL = (124, 116, 104)
TIMM = dict(
    auto_contrast='AutoContrast', equalize='Equalize', invert='Invert',
    rotate='Rotate', posterize='PosterizeIncreasing',
    solarize='SolarizeIncreasing', solarize_add='SolarizeAdd',
    color='ColorIncreasing', contrast='ContrastIncreasing',
    brightness='BrightnessIncreasing', sharpness='SharpnessIncreasing',
    shear_x='ShearX', shear_y='ShearY', move_x='TranslateXRel',
    move_y='TranslateYRel')


@pytest.fixture(scope='module')
def library():
  """torchvision's operators, whose compiled part does not load without CUDA."""
  torch = pytest.importorskip('torch')
  library = torch.library.Library('torchvision', 'DEF')
  for name in ('nms', 'qnms'):
    library.define(
        f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  torch.manual_seed(0)
  return library, torch


def alike(ours, theirs):
  for column in range(ours.shape[1]):
    assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01


def test_crops_are_distributed_as_those_of_torchvision(library):
  transforms = pytest.importorskip('torchvision.transforms')
  image = library[1].zeros(3, 375, 500)
  alike(
      np.array([crops.draw(np.random.default_rng(i), 375, 500, min_area=0.08)
                for i in range(4000)]),
      np.array([transforms.RandomResizedCrop.get_params(
          image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]))


def test_erased_boxes_are_distributed_as_those_of_torchvision(library):
  transforms = pytest.importorskip('torchvision.transforms')
  image = library[1].zeros(3, 60, 80)
  mask = np.asarray(erasing.boxes(jax.random.key(0), (3000, 60, 80)))
  rows, columns = mask.any(2), mask.any(1)
  alike(
      np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1),
                columns.sum(1)], 1),
      np.array([transforms.RandomErasing.get_params(
          image, (0.02, 1 / 3), (0.3, 1 / 0.3), [0.])[:4]
                for _ in range(3000)]))


@pytest.mark.parametrize('name', TIMM)
def test_operations_are_those_of_timm(library, name):
  auto_augment = pytest.importorskip('timm.data.auto_augment')
  assert sorted(TIMM.values()) == sorted(
      auto_augment._RAND_INCREASING_TRANSFORMS)
  small = np.random.default_rng(0).integers(40, 220, (7, 7, 3), np.uint8)
  image = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
  theirs = auto_augment.AugmentOp(
      TIMM[name], prob=1., magnitude=9.1,
      hparams=dict(img_mean=FILL, interpolation=Image.Resampling.BICUBIC))
  kind = np.array([rand_augment.OPERATIONS.index(name)] * 2)
  signs = np.float32([1, -1])
  ours = np.asarray(rand_augment.apply(
      np.stack([np.asarray(image)] * 2), kind, np.float32([0.91, 0.91]), signs,
      FILL), int)
  # Theirs draws the direction.
  found = np.stack([np.asarray(theirs(image), int) for _ in range(12)])
  difference = np.abs(found[:, None] - ours).max(-1)  # [12, 2, H, W]
  closest = np.median(difference, (2, 3))
  assert (closest.min(1) <= 1).all()
  far = (difference > 3).mean((2, 3)).min(1)
  # At borders, Pillow neither blends with the fill nor interpolates.
  assert (far < (0.1 if 'rotate' in name else 0.06)).all()
  if found.std(0).max():  # both directions came up
    assert set(closest.argmin(1)) == {0, 1}


def test_what_is_drawn_is_what_timm_draws(library):
  auto_augment = pytest.importorskip('timm.data.auto_augment')
  transform = auto_augment.rand_augment_transform(
      'rand-m9-mstd0.5-inc1', dict(translate_const=100, img_mean=FILL))
  assert transform.num_layers == 2 and len(transform.ops) == 15
  for op in transform.ops:
    assert (op.prob, op.magnitude, op.magnitude_std) == (0.5, 9, 0.5)
    assert op.magnitude_max in (None, 10)

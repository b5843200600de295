"""How a checkpoint's images were prepared."""

import json
from typing import NamedTuple

from absl import logging

from adavit_jax.weights import augreg
from adavit_jax.weights import files
from adavit_jax.weights import formats
from adavit_jax.weights import hugging_face
from adavit_jax.weights import timm

METADATA = 'preprocessing'  # key in the metadata of a safetensors file


class Preprocessing(NamedTuple):
  """Of a model's input, in units of 1 (white).

  Attributes:
    mean: subtracted from each channel.
    std: each channel is divided by it.
    interpolation: 'bicubic' or 'bilinear'.
    crop: side of the model's image over the short side of the resized one,
      whose centre is cropped; 1 crops only the long side.
  """
  mean: tuple[float, ...]
  std: tuple[float, ...]
  interpolation: str
  crop: float


_IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# Layouts of ViT and DeiT, whose libraries have preparations of their own.
_KNOWN = (timm.FORMAT, hugging_face.FORMAT, augreg.FORMAT)
# Where a layout shows the patch size: tensor and axis.
_PATCHES = {timm.FORMAT.title: ('patch_embed.proj.weight', -1),
            augreg.FORMAT.title: ('embedding/kernel', 0)}
_PIL = {2: 'bilinear', 3: 'bicubic'}  # Pillow's numbers


def preprocessing(source, name=''):
  """Returns the `Preprocessing` of a checkpoint.

  The first of these that is there decides:

  1. what `save` wrote into the file,
  2. config.json (timm) or preprocessor_config.json (Hugging Face) beside it,
  3. the tensors, of ViT and DeiT: every distilled model has ImageNet's mean
     and deviation, an AugReg or big_vision .npz otherwise 0.5,
  4. `name`, else the names of the file and its folder: ImageNet's if 'deit'
     is in it, otherwise 0.5 as the ViT of timm and of Hugging Face have. The
     tensors of the two do not differ.

  Crop and interpolation are timm's, or Hugging Face's for its layout (whose
  ViT squeezes an image to a square where we crop the centre). Where all this
  errs, use `Preprocessing(...)` or `_replace`.

  Args:
    source: as `load`'s path.
    name: of the model, as given to `create`.

  Raises:
    ValueError: if the file cannot be read or recognised, or it is of another
      model and says nothing.
  """
  checkpoint = files.read(source)
  if METADATA in checkpoint.metadata:
    return _parse(checkpoint.metadata[METADATA], _from_ours, checkpoint.path)
  fmt = formats.recognise(checkpoint)
  for file, parse in (('config.json', _from_timm),
                      ('preprocessor_config.json', _from_hugging_face)):
    beside = checkpoint.path.parent / file
    if beside.is_file():
      found = _parse(beside.read_bytes(), parse, beside)
      if found:
        return found
  if fmt not in _KNOWN:
    raise ValueError(
        f'{checkpoint.path} does not say how its images were prepared: give '
        f'`save` their preprocessing, or set config.data.mean, std, '
        f'interpolation and crop')
  arrays = fmt.clean(checkpoint.tensors)
  deit = fmt.dist in arrays
  if not deit and fmt is not augreg.FORMAT:
    deit = _by_name(checkpoint.path, name)
  interpolation, crop = 'bicubic', 0.9
  if fmt is hugging_face.FORMAT:
    interpolation, crop = ('bicubic', 0.875) if deit else ('bilinear', 1.)
  elif _image_size(fmt, arrays) >= 384:
    crop = 1.
  values = _IMAGENET if deit else _HALF
  return Preprocessing(**values, interpolation=interpolation, crop=crop)


def to_json(value):
  """A `Preprocessing` as the text that `save` keeps in a file."""
  return json.dumps(value._asdict())


def _by_name(path, name):
  """Whether a model whose tensors do not tell is a DeiT."""
  known = name or f'{path.parent.name} {path.name}'
  deit = 'deit' in known.lower()
  logging.info('%s does not say how its images were normalised: taken as '
               '%s by its name %r.', path, 'DeiT' if deit else 'ViT', known)
  return deit


def _image_size(fmt, arrays):
  """Pixels along a side, 0 if the file does not show it."""
  tensor, axis = _PATCHES[fmt.title]
  tokens = [x.shape[1] for name, x in arrays.items()
            if 'pos_embed' in name and x.ndim == 3]
  if not tokens:
    return 0
  # One or two prefix tokens: the root is rounded down to the grid's side.
  return int((tokens[0] - 1) ** 0.5) * arrays[tensor].shape[axis]


def _parse(text, parse, path):
  try:
    return parse(json.loads(text))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path}: the preprocessing in it cannot be read '
        f'({type(error).__name__}: {error}); set config.data.mean, std, '
        f'interpolation and crop instead') from error


def _from_ours(found):
  return Preprocessing(tuple(found['mean']), tuple(found['std']),
                       found['interpolation'], found['crop'])


def _from_timm(found):
  if 'pretrained_cfg' not in found:
    return None  # another library's
  found = found['pretrained_cfg']
  return _from_ours({**found, 'crop': found['crop_pct']})


def _from_hugging_face(found):
  size = found['size']
  # Older files have a number where newer ones have a dictionary.
  side = lambda x: x if isinstance(x, int) else min(x.values())
  crop = 1.
  if found.get('do_center_crop', False):
    crop = side(found['crop_size']) / side(size)
  mean, std = tuple(found['image_mean']), tuple(found['image_std'])
  if not found.get('do_normalize', True):
    mean, std = (0.,) * len(mean), (1.,) * len(std)
  return Preprocessing(mean, std, _PIL[found['resample']], crop)

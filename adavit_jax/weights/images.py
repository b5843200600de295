"""The image preprocessing of a checkpoint."""

import json
from typing import NamedTuple

from absl import logging

from adavit_jax.weights import attributes
from adavit_jax.weights import augreg
from adavit_jax.weights import config_json
from adavit_jax.weights import families
from adavit_jax.weights import files
from adavit_jax.weights import hugging_face
from adavit_jax.weights import layout
from adavit_jax.weights import vit_timm

METADATA = 'preprocessing'  # key in the metadata of a safetensors file


class Preprocessing(NamedTuple):
  """Preprocessing of a model's input.

  Attributes:
    mean: mean to subtract from each channel, in 0..1 units.
    std: standard deviation to divide each channel by, in 0..1 units.
    interpolation: 'bicubic' or 'bilinear'.
    crop: side of the center crop over the short side of the resized image; 1
      crops only the long side.
  """
  mean: tuple[float, ...]
  std: tuple[float, ...]
  interpolation: str
  crop: float


_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# ViT and DeiT layouts of libraries whose default preprocessing is known.
_KNOWN = (vit_timm.FORMAT, hugging_face.FORMAT, augreg.FORMAT)
# The tensor and axis that give the patch size in a layout.
_PATCHES = {vit_timm.FORMAT.title: ('patch_embed.proj.weight', -1),
            augreg.FORMAT.title: ('embedding/kernel', 0)}
# timm's values where its config.json has none.
_TIMM = dict(interpolation='bicubic', crop_pct=0.875)
_PIL = {2: 'bilinear', 3: 'bicubic'}  # Pillow's constants


def preprocessing(source, name=''):
  """Returns the `Preprocessing` of a checkpoint.

  The first available source is used:

  1. the metadata that `save` wrote into the file,
  2. config.json (timm, in its new or old form) or preprocessor_config.json
     (Hugging Face) beside it,
  3. the tensors: ImageNet's mean and standard deviation for LeViT, CrossViT,
     DVT, ViL, Shuffle Transformer, Evo-ViT and every distilled DeiT, 0.5 for
     any other AugReg or big_vision .npz,
  4. for ViT and DeiT, `name`, else the names of the file and its folder:
     ImageNet's if they contain 'deit', otherwise 0.5 as for the ViTs of timm
     and Hugging Face. The tensors do not tell the two apart.

  Without metadata or config file, crop and interpolation are timm's defaults,
  or Hugging Face's for its layout (its ViT resizes the image to a square, we
  crop the center). To override a wrong result, create a `Preprocessing` or use
  `_replace`.

  Args:
    source: see `path` of `load`.
    name: name of the model, see `create`.

  Raises:
    ValueError: if the file cannot be read or recognized, or was written by
      `save` or is of another model family and has no preprocessing.
  """
  checkpoint = files.read(source)
  if METADATA in checkpoint.metadata:
    return _parse(checkpoint.metadata[METADATA], _from_ours, checkpoint.path)
  fmt = families.recognize(checkpoint)
  stated = _beside(checkpoint.path)
  if stated is not None:
    return stated
  # Other libraries' models were trained with their defaults; ours may have any.
  own = attributes.is_own(checkpoint)
  if fmt.images is not None and not own:
    return Preprocessing(**fmt.images(fmt.clean(checkpoint.tensors)))
  if fmt not in _KNOWN or own:
    raise ValueError(
        f'{checkpoint.path} does not include the preprocessing of its images: '
        f'pass it to `save`, or set config.data.mean, std, interpolation and '
        f'crop')
  arrays = fmt.clean(checkpoint.tensors)
  deit = fmt.dist in arrays
  if not deit and fmt is not augreg.FORMAT:
    deit = _by_name(checkpoint.path, name)
  interpolation, crop = 'bicubic', 0.9
  if fmt is hugging_face.FORMAT:
    interpolation, crop = ('bicubic', 0.875) if deit else ('bilinear', 1.)
  elif _image_size(fmt, arrays) >= 384:
    crop = 1.
  values = layout.IMAGENET if deit else _HALF
  return Preprocessing(**values, interpolation=interpolation, crop=crop)


def to_json(value):
  """Serializes a `Preprocessing` for the metadata of a file."""
  return json.dumps(value._asdict())


def _by_name(path, name):
  """Whether a model is a DeiT, judging by its name."""
  name = name or f'{path.parent.name} {path.name}'
  deit = 'deit' in name.lower()
  logging.info('%s does not include the normalization of its images: using '
               'that of %s, judging by its name %r.', path,
               'DeiT' if deit else 'ViT', name)
  return deit


def _image_size(fmt, arrays):
  """Side of the model's input in pixels, 0 if it is unknown."""
  tensor, axis = _PATCHES[fmt.title]
  tokens = [x.shape[1] for name, x in arrays.items()
            if 'pos_embed' in name and x.ndim == 3]
  if not tokens:
    return 0
  # Rounding down gives the side of the grid for one or two prefix tokens.
  return int((tokens[0] - 1) ** 0.5) * arrays[tensor].shape[axis]


def _parse(text, parse, path):
  try:
    return parse(json.loads(text))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path}: its preprocessing cannot be read '
        f'({type(error).__name__}: {error}); set config.data.mean, std, '
        f'interpolation and crop instead') from error


def _from_ours(fields):
  return Preprocessing(tuple(fields['mean']), tuple(fields['std']),
                       fields['interpolation'], fields['crop'])


def _beside(path):
  """The `Preprocessing` that a file beside the weights states, or None."""
  config = config_json.beside(path)
  if config is not None and config.form == 'timm':
    cfg = config.fields.get('pretrained_cfg')
    if cfg == {} or {'mean', 'std', *_TIMM}.intersection(cfg or ()):
      return _parse(json.dumps(cfg), _from_timm, config.path)
  file = path.parent / 'preprocessor_config.json'
  if file.is_file():
    return _parse(file.read_bytes(), _from_hugging_face, file)
  if config is not None and config.form != 'Hugging Face':
    logging.warning('%s states no preprocessing in a form that is known (its '
                    'keys: %s): it is guessed from the weights.', config.path,
                    config.keys())
  return None


def _from_timm(fields):
  missing = {k: v for k, v in _TIMM.items() if fields.get(k) is None}
  if missing:
    logging.info("timm's defaults for what its config does not state: %s",
                 missing)
  mode = fields.get('crop_mode') or 'center'
  if mode != 'center':
    logging.warning('timm prepares these images with crop_mode=%r; here the '
                    'center is cropped.', mode)
  fields = {**fields, **missing}
  return _from_ours({**fields, 'crop': fields['crop_pct']})


def _from_hugging_face(fields):
  # A number in older files, a dict in newer ones.
  def side(x):
    if isinstance(x, int):
      return x
    if 'shortest_edge' in x:
      return x['shortest_edge']
    if x['height'] != x['width']:
      raise ValueError(f'size={x} is not square')
    return x['height']
  crop = 1.
  if fields.get('do_center_crop', False):
    crop = side(fields['crop_size']) / side(fields['size'])
  else:
    side(fields['size'])
  mean, std = tuple(fields['image_mean']), tuple(fields['image_std'])
  if not fields.get('do_normalize', True):
    mean, std = (0.,) * len(mean), (1.,) * len(std)
  # Ours are of pixels in 0..1, theirs of pixels times a factor.
  factor = fields.get('rescale_factor', 1 / 255)
  scale = 255 * (factor if fields.get('do_rescale', True) else 1)
  if abs(scale - 1) > 1e-6:
    mean, std = (tuple(x / scale for x in values) for values in (mean, std))
  return Preprocessing(mean, std, _PIL[fields['resample']], crop)

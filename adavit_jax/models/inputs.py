"""What images a model takes."""

import jax.numpy as jnp
import numpy as np


def check_images(model, images):
  """Raises a ValueError unless `model` takes `images`: [B, S, S, C], B >= 1.
  """
  s, c = model.image_size, model.channels
  if not hasattr(images, 'ndim'):
    raise ValueError(f'images are a {type(images).__name__}; give an array '
                     f'[B, {s}, {s}, {c}], np.stack(images) for example')
  if images.ndim != 4 or images.shape[1:] != (s, s, c):
    shape = tuple(images.shape)
    if shape == (s, s, c):
      hint = 'give one image as image[None]'
    elif shape[-2:] == (s, s):
      hint = 'give grey images as images[..., None]' if len(shape) < 4 else (
          'give the channels as the last axis')
    elif shape[1:3] == (s, s):
      hint = f'it was made for {c} channels'
    elif len(shape) == 4 and shape[1] == shape[2]:
      hint = f'resize them, or create the model with image_size={shape[1]}'
    else:
      hint = ('resize and crop them to squares; `read` of the classifier of '
              'adavit_jax.load gives a file as such')
    raise ValueError(f'images have shape {shape}, the model takes [B, {s}, '
                     f'{s}, {c}]; {hint}')
  # Not len: the batch axis of an exported program may have no size.
  if images.shape[0] == 0:
    raise ValueError(f'images have shape {tuple(images.shape)}: give B >= 1 of '
                     f'them')


def check_normalized(model, images):
  """Raises a ValueError for whole numbers, or as `check_images`."""
  check_images(model, images)
  if jnp.issubdtype(images.dtype, jnp.integer):
    raise ValueError(f'images are {images.dtype}; the model takes normalised '
                     f'floats, pixels are for the classifier of '
                     f'adavit_jax.load')


def as_pixels(model, images):
  """Images as an array, if they are uint8 [B, S, S, C] that `model` takes.

  Raises:
    ValueError: if not, as `check_images`, or they are no array at all.
  """
  try:
    images = np.asarray(images)
  except ValueError as e:
    s, c = model.image_size, model.channels
    raise ValueError(f'images make no array ({e}); resize and crop each to '
                     f'[{s}, {s}, {c}], or give what `read` of the classifier '
                     f'of adavit_jax.load makes of their files') from e
  check_images(model, images)
  if images.dtype != np.uint8:
    raise ValueError(f'images are {images.dtype}; give uint8 pixels of 0 to '
                     f'255, they are normalised here')
  return images

"""Checks of a model's input images."""

import jax.numpy as jnp
import numpy as np


def check_images(model, images):
  """Raises a ValueError unless `images` are [B, S, S, C] with B >= 1."""
  s, c = model.image_size, model.channels
  if not hasattr(images, 'ndim'):
    raise ValueError(f'images are a {type(images).__name__}; give an array '
                     f'[B, {s}, {s}, {c}], np.stack(images) for example')
  if images.ndim != 4 or images.shape[1:] != (s, s, c):
    shape = tuple(images.shape)
    if shape == (s, s, c):
      hint = 'give one image as image[None]'
    elif shape[-2:] == (s, s):
      hint = 'give gray images as images[..., None]' if len(shape) < 4 else (
          'give the channels as the last axis')
    elif shape[1:3] == (s, s):
      hint = f'give images with channels={c}'
    elif len(shape) == 4 and shape[1] == shape[2]:
      hint = f'resize them, or create the model with image_size={shape[1]}'
    else:
      hint = ('resize and crop them to squares, as `read` of the classifier of '
              'adavit_jax.load does for files')
    raise ValueError(f'images have shape {shape}, but the model takes [B, {s}, '
                     f'{s}, {c}]; {hint}')
  # Not len, since the batch axis of an exported program may be symbolic.
  if images.shape[0] == 0:
    raise ValueError(f'images have shape {tuple(images.shape)}: give B >= 1')


def check_normalized(model, images):
  """Raises a ValueError for integer images; also see `check_images`."""
  check_images(model, images)
  if jnp.issubdtype(images.dtype, jnp.integer):
    raise ValueError(f'images are {images.dtype}; the model takes normalized '
                     f'floats, only the classifier of adavit_jax.load takes '
                     f'pixels')


def as_pixels(model, images):
  """Converts to NumPy; checks uint8 [B, S, S, C].

  Raises:
    ValueError: if the images are not such an array, see `check_images`.
  """
  try:
    images = np.asarray(images)
  except ValueError as e:
    s, c = model.image_size, model.channels
    raise ValueError(f'images do not form an array ({e}); resize and crop each '
                     f'to [{s}, {s}, {c}], as `read` of the classifier of '
                     f'adavit_jax.load does for files') from e
  check_images(model, images)
  if images.dtype != np.uint8:
    raise ValueError(f'images are {images.dtype}; give uint8 pixels in 0 to '
                     f'255, without normalization')
  return images

"""Exit heads by name: where each one fits, how to create it, and its MACs."""

import difflib

import jax.numpy as jnp

from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import head_modules

HEADS = {
    'mlp': head_modules.MlpHead,
    'cnn_ignore': head_modules.CnnIgnoreHead,
    'cnn_add': head_modules.CnnAddHead,
    'cnn_project': head_modules.CnnProjectHead,
    'vit': head_modules.VitHead,
    'mlp_mixer': head_modules.MlpMixerHead,
    'resmlp': head_modules.ResMlpHead,
}


def check_name(head):
  """Raises a ValueError unless `head` is a name in `HEADS`."""
  if head not in HEADS:
    close = difflib.get_close_matches(str(head), HEADS, n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {list(HEADS)}'
    raise ValueError(f'unknown exit head {head!r}; {hint}')


def check_place(head, at):
  """Raises a ValueError if a head does not support the tokens of a place.

  Args:
    head: one of `HEADS`.
    at: `Tokens`.
  """
  check_name(head)
  if head == 'vit' and at.width % at.num_heads:
    raise ValueError(f"exit head 'vit': num_heads={at.num_heads} of its place "
                     f'does not divide width={at.width}')
  if at.grid is None and issubclass(HEADS[head], head_modules.CnnIgnoreHead):
    raise ValueError(f'exit head {head!r} is convolutional, but the tokens of '
                     f'its place form no grid; choose one of '
                     f"{[h for h in HEADS if 'cnn' not in h]}")


def create(head, at, num_outputs, *, dtype=jnp.float32, name=None):
  """Creates an exit head for the tokens of a place.

  If called in `setup` or a compact method of a Flax module, the head becomes a
  submodule.

  Args:
    head: one of `HEADS`.
    at: `Tokens` of the place.
    num_outputs: K, number of classes, or 1 for regression.
    dtype: compute dtype.
    name: name of the submodule, as in Flax.

  Returns:
    `ExitHead`.

  Raises:
    ValueError: if the head is unknown or does not support the place, or
      num_outputs is less than 1.
  """
  check_place(head, at)
  if num_outputs < 1:
    raise ValueError(f'num_outputs={num_outputs} must be at least 1')
  return HEADS[head](at=at, num_outputs=num_outputs, dtype=dtype, name=name)


def head_macs(name, at, num_outputs):
  """MACs of one image in an exit head, including zero padding of convolutions.

  'vit' and 'mlp_mixer' compute only what their class token needs, also in
  training, and only that is counted.

  Args:
    name: one of `HEADS`.
    at: `Tokens` of the place.
    num_outputs: K.

  Returns:
    int.

  Raises:
    ValueError: if the name is unknown.
  """
  check_name(name)
  d, n, p = at.width, at.num, at.prefix
  patches, needed = n - p, p or n
  last = d * num_outputs
  channels = 2 * 4 * d * d  # MLP of one token, D -> 4 D -> D

  if name == 'mlp':
    return channels + last
  if name == 'vit':
    unread = sum(encoder_lib.unread_macs(n, needed, d, at.mlp_dim))
    return sum(encoder_lib.macs(n, d, at.mlp_dim)) - unread + last
  if name == 'mlp_mixer':
    return d * (n + needed) * 4 * d + needed * channels + last
  if name == 'resmlp':
    return d * patches * patches + patches * channels + last

  gh, gw = at.grid
  pooled = ((gh + 1) // 2) * ((gw + 1) // 2)
  project = patches * 2 * d * d if name == 'cnn_project' else 0
  filters = head_modules.FILTERS
  return (project + patches * 9 * d * filters
          + pooled * filters * num_outputs)

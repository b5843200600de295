"""Checksums of what a checkpoint contains, so that damage does not load."""

import json
import zlib

import jax
import numpy as np


def of_arrays(tree):
  """Returns {path: CRC-32 of the bytes of an array}.

  Arrays with shards on other hosts are left out.

  Args:
    tree: pytree of arrays, including typed keys.
  """
  keystr = jax.tree_util.keystr
  bits = {keystr(path, simple=True, separator='/'): _bits(x)
          for path, x in jax.tree_util.tree_leaves_with_path(tree)
          if x.is_fully_addressable or x.is_fully_replicated}
  return jax.tree.map(_crc, jax.device_get(bits))


def differing(tree, saved):
  """Returns the paths of arrays that are not those of saved checksums.

  Args:
    tree: as in `of_arrays`.
    saved: what `of_arrays` returned; paths that it lacks are not checked.
  """
  return [path for path, crc in of_arrays(tree).items()
          if saved.get(path, crc) != crc]


def of_json(*values):
  """Returns the CRC-32 of JSON-serializable values, as they are read back."""
  values = json.loads(json.dumps(values))  # number keys become texts
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _bits(x):
  is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(x) if is_key else x


def _crc(x):
  x = np.ascontiguousarray(x)
  # Extended types such as bfloat16 have no buffer of their own.
  return zlib.crc32(x.reshape(-1).view(np.uint8))

"""Reads the tensors of a checkpoint file without executing code in it."""

import importlib.util
import math
import pathlib
import pickle
import re
import struct
from typing import NamedTuple
import zipfile
import zlib

from absl import logging
import jax.numpy as jnp
import numpy as np
import safetensors

from adavit_jax import paths
from adavit_jax.weights import shards as shards_lib
from adavit_jax.weights import torch_files

HUB = 'hf://'
# The tensors, and the files that describe them.
_HUB_FILES = ('model.safetensors', 'config.json', 'preprocessor_config.json',
              'model.safetensors.index.json', 'model-*-of-*.safetensors')
# Names that the file has in a folder of other libraries.
_USUAL = (_HUB_FILES[0], _HUB_FILES[3], 'pytorch_model.bin',
          'pytorch_model.bin.index.json')
_LFS = b'version https://git-lfs'
# Types of safetensors that NumPy alone does not have.
_FLOAT8 = dict(F8_E4M3=np.dtype(jnp.float8_e4m3fn),
               F8_E5M2=np.dtype(jnp.float8_e5m2))

# Exceptions that the readers raise on damaged files or other kinds of files.
_DAMAGE = (
    safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError,
    IndexError, AttributeError, EOFError, RuntimeError, NotImplementedError,
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
)


class Checkpoint(NamedTuple):
  """The contents of a file, or of a checkpoint in several files.

  Attributes:
    path: local path of the file that was given.
    tensors: arrays by name, with the dtypes of the file.
    metadata: text metadata of a safetensors file; of PyTorch's, the names of
      classes that are in it, as JSON; {} for other files.
  """
  path: pathlib.Path
  tensors: dict[str, np.ndarray]
  metadata: dict[str, str]


def read(path):
  """Reads a .safetensors, .npz, .pth, .pt or .bin file.

  Args:
    path: path of a local file, or 'hf://owner/name' for the safetensors of a
      model on the Hugging Face hub (requires huggingface_hub, which caches
      them). Of a checkpoint in several files, its index (*.index.json) or any
      of the files: all of them are read. A `Checkpoint` is returned unchanged.

  Returns:
    `Checkpoint`.

  Raises:
    ValueError: if the file does not exist, is damaged, incomplete or of another
      kind, holds more than tensors, or a required library is not installed.
  """
  if isinstance(path, Checkpoint):
    return path
  if str(path).startswith(HUB):
    path = _download(str(path))
  path = pathlib.Path(paths.expanded(path, 'weights'))
  if path.is_dir():
    there = next((name for name in _USUAL if (path / name).is_file()),
                 _HUB_FILES[0])
    raise ValueError(f'{path} is a directory; name the weights file in it, '
                     f'e.g. {path / there}')
  if not path.is_file():
    raise ValueError(f'{path} does not exist; weights is the path of a file, '
                     f'or {HUB}OWNER/NAME')
  shards = shards_lib.find(path)
  if shards is None:
    return Checkpoint(path, *_read(path))
  logging.info('%s belongs to a checkpoint in several files; all are read: %s',
               path, ', '.join(file.name for file in shards.files))
  return Checkpoint(path, *shards_lib.join(
      path, shards, map(_read, shards.files)))


def _read(path):
  """Returns (tensors, metadata) of one file."""
  readers = {'.safetensors': _safetensors, '.npz': _npz,
             **dict.fromkeys(torch_files.SUFFIXES, torch_files.load)}
  if path.suffix not in readers:
    raise ValueError(f'{path} must end in one of {", ".join(readers)}')
  if path.suffix in torch_files.SUFFIXES:
    if importlib.util.find_spec('torch') is None:
      if message := torch_files.objects_message(path):
        raise ValueError(message)
    _need('torch', f'{path} is a PyTorch file', 'or convert it to safetensors')
    _check_torch(path)
  try:
    content = readers[path.suffix](path)
  except _DAMAGE as error:
    if path.suffix in torch_files.SUFFIXES:
      if message := torch_files.objects_message(path):
        raise ValueError(message) from None
    if not isinstance(error, OSError) and path.read_bytes().startswith(
        _LFS):
      raise ValueError(f'{path} is a pointer of Git LFS and not the file that '
                       f'it stands for: fetch that by git lfs pull') from None
    # torch colors its text, and advises to read unsafely.
    reason = re.sub(r'\x1b\[[\d;]*m', '', ' '.join(str(error).split()))
    reason = '' if 'weights_only' in reason else f': {reason[:200]}'
    raise ValueError(f'{path} cannot be read as {path.suffix}: it is damaged, '
                     f'incomplete or another kind of file '
                     f'({type(error).__name__}{reason})') from None
  if path.suffix in torch_files.SUFFIXES:
    return torch_files.arrays(path, content)
  return content


def _safetensors(path):
  with safetensors.safe_open(path, framework='np') as file:
    metadata, names = file.metadata() or {}, file.keys()
    kinds = {file.get_slice(name).get_dtype() for name in names}
    if kinds.isdisjoint(_FLOAT8):
      return {name: file.get_tensor(name) for name in names}, metadata
    tensors = {name: file.get_tensor(name) for name in names
               if file.get_slice(name).get_dtype() not in _FLOAT8}
  for name, x in safetensors.deserialize(path.read_bytes()):
    if name not in tensors:
      data = np.frombuffer(x['data'], _FLOAT8[x['dtype']])
      tensors[name] = data.reshape(x['shape'])
  return tensors, metadata


def _npz(path):
  if not zipfile.is_zipfile(path):
    raise ValueError('not a zip archive')
  _check_sizes(path)
  with np.load(path, allow_pickle=False) as file:
    tensors = {name: file[name] for name in file.files}
  if not all(isinstance(x, np.ndarray) for x in tensors.values()):
    raise ValueError('it holds more than arrays')
  # NumPy writes bfloat16 as raw bytes; of the types of one byte there are many.
  raw = [name for name, x in tensors.items() if x.dtype.str == '|V2']
  if raw:
    logging.info('%s: %d arrays of two raw bytes are read as bfloat16.', path,
                 len(raw))
  return tensors | {
      name: tensors[name].view(jnp.bfloat16) for name in raw}, {}


def _check_sizes(path):
  """Refuses arrays larger than the file before NumPy allocates them."""
  headers = {(1, 0): np.lib.format.read_array_header_1_0,
             (2, 0): np.lib.format.read_array_header_2_0}
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version in headers:
          shape, _, dtype = headers[version](file)
          size = math.prod(shape) * dtype.itemsize
          if size > info.file_size and not dtype.hasobject:
            raise ValueError(f'{info.filename} of shape {shape} is larger than '
                             f'the file')


def _check_torch(path):
  import torch
  # CVE-2025-32434: before 2.6, weights_only did not prevent code execution.
  if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6):
    raise ValueError(f'{path}: torch {torch.__version__} may execute code that '
                     f'is hidden in the file; pip install "torch>=2.6", or '
                     f'convert it to safetensors')


def _need(package, reason, alternative):
  if importlib.util.find_spec(package) is None:
    raise ValueError(f'{reason}, which needs {package}: pip install {package}, '
                     f'{alternative}')


def _download(path):
  _need('huggingface_hub', f'{path} is on the Hugging Face hub',
        'or download the file and give its path')
  import huggingface_hub
  repo = path.removeprefix(HUB)
  if repo.count('/') != 1 or not all(repo.split('/')):
    raise ValueError(f'{path} must be {HUB}OWNER/NAME')
  try:
    folder = huggingface_hub.snapshot_download(
        repo, allow_patterns=list(_HUB_FILES))
  except (OSError, ValueError, RuntimeError) as error:
    raise ValueError(f'{path} could not be fetched ({type(error).__name__}: '
                     f'{str(error)[:200]}); download the file and give its '
                     f'path') from error
  files = [pathlib.Path(folder) / name for name in _USUAL[:2]]
  file = next((file for file in files if file.is_file()), None)
  if file is None:
    raise ValueError(f'{path} has no {_HUB_FILES[0]}: its weights are in '
                     f'another format; download and convert them, and give '
                     f'the path of the file')
  return file

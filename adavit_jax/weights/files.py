"""Reads the tensors of a checkpoint file without executing code in it."""

import importlib.util
import pathlib
import pickle
import struct
from typing import NamedTuple
import zipfile
import zlib

import numpy as np
import safetensors

HUB = 'hf://'
# The tensors, and the two files that describe their preprocessing.
_HUB_FILES = ('model.safetensors', 'config.json', 'preprocessor_config.json')

# Exceptions that the readers raise on damaged files or other kinds of files.
_DAMAGE = (
    safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError,
    IndexError, AttributeError, EOFError, RuntimeError, NotImplementedError,
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
)


class Checkpoint(NamedTuple):
  """The contents of a file.

  Attributes:
    path: local path of the file.
    tensors: arrays by name, with the dtypes of the file.
    metadata: text metadata of a safetensors file, {} for other files.
  """
  path: pathlib.Path
  tensors: dict[str, np.ndarray]
  metadata: dict[str, str]


def read(path):
  """Reads a .safetensors, .npz, .pth, .pt or .bin file.

  Args:
    path: path of a local file, or 'hf://owner/name' for the safetensors of a
      model on the Hugging Face hub (requires huggingface_hub, which caches
      them). A `Checkpoint` is returned unchanged.

  Returns:
    `Checkpoint`.

  Raises:
    ValueError: if the file does not exist, is damaged or of another kind, or a
      required library is not installed.
  """
  if isinstance(path, Checkpoint):
    return path
  if str(path).startswith(HUB):
    path = _download(str(path))
  path = pathlib.Path(path).expanduser()
  readers = {'.safetensors': _safetensors, '.npz': _npz, '.pth': _torch,
             '.pt': _torch, '.bin': _torch}
  if path.is_dir():
    raise ValueError(f'{path} is a directory; name the weights file in it, '
                     f'e.g. {path / _HUB_FILES[0]}')
  if not path.is_file():
    raise ValueError(f'{path} does not exist; weights is the path of a file, '
                     f'or {HUB}OWNER/NAME')
  if path.suffix not in readers:
    raise ValueError(f'{path} must end in one of {", ".join(readers)}')
  if path.suffix in ('.pth', '.pt', '.bin'):
    _need('torch', f'{path} is a PyTorch file', 'or convert it to safetensors')
    _check_torch(path)
  try:
    tensors, metadata = readers[path.suffix](path)
  except _DAMAGE as error:
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(f'{path} cannot be read as {path.suffix}: it is damaged, '
                     f'incomplete or another kind of file '
                     f'({type(error).__name__}: {reason})') from error
  return Checkpoint(path, tensors, metadata)


def _safetensors(path):
  with safetensors.safe_open(path, framework='np') as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    return tensors, file.metadata() or {}


def _npz(path):
  if not zipfile.is_zipfile(path):
    raise ValueError('not a zip archive')
  with np.load(path, allow_pickle=False) as file:
    tensors = {name: file[name] for name in file.files}
  if not all(isinstance(x, np.ndarray) for x in tensors.values()):
    raise ValueError('it holds more than arrays')
  return tensors, {}


def _check_torch(path):
  import torch
  # CVE-2025-32434: before 2.6, weights_only did not prevent code execution.
  if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6):
    raise ValueError(f'{path}: torch {torch.__version__} may execute code that '
                     f'is hidden in the file; pip install "torch>=2.6", or '
                     f'convert it to safetensors')


def _torch(path):
  import torch
  tensors = torch.load(path, map_location='cpu', weights_only=True)
  for key in ('model', 'state_dict', 'model_state_dict', 'net'):
    if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
      tensors = tensors[key]
  if not isinstance(tensors, dict) or not all(
      isinstance(x, torch.Tensor) for x in tensors.values()):
    raise ValueError('not a dictionary of tensors')
  numpy = lambda x: (x.float() if x.is_floating_point() else x).numpy()
  return {str(name): numpy(x.detach()) for name, x in tensors.items()}, {}


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
  file = pathlib.Path(folder) / _HUB_FILES[0]
  if not file.is_file():
    raise ValueError(f'{path} has no {_HUB_FILES[0]}: its weights are in '
                     f'several files or in another format; download and '
                     f'convert them, and give the path of the file')
  return file

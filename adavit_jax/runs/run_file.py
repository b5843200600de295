"""A trained run in one file: its parameters, its config and a card.

The file is one of weights in the library's own layout, see `weights.native`,
with the preprocessing and the class names in its metadata, so that its backbone
can be loaded as such. It also has the groups of exit heads and policy, and in
the metadata `run`, the info and step of the checkpoint as JSON, and `card`, a
JSON dict for people:

* model, data, phase, step, seed: of the run;
* settings: attributes of the classifier that was saved, see
  `Classifier.settings`;
* whatever `describe` has added, such as accuracy and MACs.
"""

import json
import pathlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from adavit_jax import paths
from adavit_jax import weights
from adavit_jax.data import data_config
from adavit_jax.runs import common_groups
from adavit_jax.runs import saved_run
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.weights import attributes
from adavit_jax.weights import images
from adavit_jax.weights import layout
from adavit_jax.weights import mismatch
from adavit_jax.weights import native

SUFFIX = '.safetensors'
DTYPES = ('float16', 'bfloat16', 'float32')
_VERSION = 1  # of the format
# Keys of the metadata.
_FORMAT, _RUN, _CARD = 'run_format', 'run', 'card'


class RunFile:
  """Reads a file with the methods of a `saved_run.Run`.

  Attributes:
    workdir: path of the file, as it was given.
    card: dict, see the module.
  """

  def __init__(self, path):
    """Reads the file.

    Args:
      path: as of `weights.read`.

    Raises:
      ValueError: if it cannot be read, holds no run, or has a newer format.
    """
    self.workdir = str(path)
    checkpoint = weights.read(path)
    self._tensors = checkpoint.tensors
    run, self.card = _metadata(self.workdir, checkpoint.metadata)
    self._saved = saved_run.saved('file', run['step'], run['info'])

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def find(self, *, phase='', best=False):
    """Returns the checkpoint in the file: `Saved`.

    Args:
      phase: '' or its phase.
      best: must be False, since the file does not tell.

    Raises:
      ValueError: if another checkpoint is asked for.
    """
    there = self._saved.info['phase']
    if best or phase not in ('', there):
      raise ValueError(f'phase={phase!r} and best={best}: {self.workdir} holds '
                       f'one checkpoint, of the phase {there!r}; leave them '
                       f'out')
    return self._saved

  def warn_of_unfinished(self):
    """Does nothing: no training goes on in a file."""

  def state(self, saved, wanted, mesh):
    """Returns the `State` for a system, see `saved_run.Run.state`."""
    groups = common_groups.common_groups(
        saved_run.system(saved.info), wanted, saved.info, self.workdir)
    init = lambda: state_lib.init_state(wanted, wanted.config.seed)
    like = jax.eval_shape(init).params
    groups |= set(state_lib.model_params(like))
    params = self._groups(wanted.model, {name: like[name] for name in groups})
    new = saved_run.new_groups(init, set(like) - groups, mesh)
    return state_lib.State(
        step=jnp.int32(saved.step),
        params={**new, **sharded.put(params, mesh)}, opt_state=None,
        ema=None, log_price=jnp.float32(0), teacher=None,
        key=state_lib.key_for(wanted.config.seed, 'steps'))

  def _groups(self, model, like):
    """Returns groups, float32, of the shapes of `like`."""
    flat, tree = jax.tree_util.tree_flatten_with_path(like)
    wanted = [layout.Tensor(native.name(path), (), x.shape,
                            group=native.group(native.name(path)))
              for path, x in flat]
    arrays = {name: x for name, x in self._tensors.items()
              if native.group(name) in like}
    mismatch.check(model, self.workdir, native.FORMAT, wanted, arrays)
    mismatch.check_values(model, self.workdir, wanted, arrays)
    return tree.unflatten([t.to_leaf(arrays[t.name]) for t in wanted])


def _metadata(path, metadata):
  """Returns (run, card) of the metadata of a file."""
  if _FORMAT not in metadata:
    raise ValueError(f'{path} holds no run, as python export.py --mode=weights '
                     f'writes it; for weights alone, set init.weights, or call '
                     f'adavit_jax.weights.load')
  try:
    version = int(metadata[_FORMAT])
    if version <= _VERSION:
      run, card = (json.loads(metadata[key]) for key in (_RUN, _CARD))
      if not isinstance(card, dict):
        raise TypeError(f'card: {card}')
      saved_run.saved('file', run['step'], run['info'])
      return run, card
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is damaged: the run that it describes cannot be '
                     f'read ({type(error).__name__}: {error}); fetch it again'
                     ) from error
  raise ValueError(f'{path} has format {version} of such files, and this '
                   f'version of adavit_jax reads up to {_VERSION}; upgrade '
                   f'adavit_jax')


def write(path, info, step, system, params, settings, dtype):
  """Writes a run to a file.

  Args:
    path: path of the new file; parent directories are created.
    info: of the checkpoint, see `loop.Trainer.info`.
    step: of the checkpoint.
    system: its `System`.
    params: its groups, not folded.
    settings: JSON-serializable dict for the card.
    dtype: one of `DTYPES`, in which arrays with two or more axes are stored,
      among them the stacked vectors of encoders; others are float32.

  Returns:
    Whether all parameters are in the file as they are.

  Raises:
    ValueError: if the path has another suffix, the dtype is unknown, or values
      exceed its range.
  """
  path = check(path, dtype)
  leaves = {native.name(leaf): np.asarray(x, np.float32)
            for leaf, x in jax.tree_util.tree_leaves_with_path(params)}
  tensors = {name: _rounded(name, x, dtype) for name, x in leaves.items()}
  config = system.config.to_dict()
  _remove_paths(config)
  card = dict(
      model=config['model']['name'], data=config['data']['name'],
      phase=info['phase'], step=step, seed=config['seed'],
      settings=settings)
  run = dict(step=step, info=dict(info, config=config))
  metadata = attributes.of(system.model) | {
      _FORMAT: str(_VERSION), _RUN: json.dumps(run), _CARD: json.dumps(card),
      images.METADATA: images.to_json(_preprocessing(system)),
      'class_names': json.dumps(info['dataset']['class_names'])}
  _save(path, tensors, metadata)
  return all(np.array_equal(x, tensors[name].astype(np.float32))
             for name, x in leaves.items())


def check(path, dtype):
  """Returns the path of a file that `write` can write; see there."""
  path = paths.expanded(path, 'path')
  if not path.endswith(SUFFIX):
    raise ValueError(f'{path} must end in {SUFFIX}')
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r} must be one of {DTYPES}')
  return paths.to_write(path, 'path')


def _save(path, tensors, metadata):
  paths.write({path: safetensors_numpy.save(tensors, metadata)})


def describe(path, **fields):
  """Adds fields to the card of a file.

  Args:
    path: path of the file.
    **fields: JSON-serializable; they replace those that there are.

  Returns:
    The card, a dict.

  Raises:
    ValueError: as `RunFile`.
  """
  checkpoint = weights.read(path)
  card = {**_metadata(str(path), checkpoint.metadata)[1], **fields}
  _save(epath.Path(checkpoint.path), checkpoint.tensors,
        {**checkpoint.metadata, _CARD: json.dumps(card)})
  return card


def _rounded(name, x, dtype):
  """A leaf, float32, as it is stored."""
  if x.ndim < 2:
    return x
  with np.errstate(over='ignore'):
    y = np.ascontiguousarray(x.astype(jnp.dtype(dtype)))
  if not np.isfinite(y).all() and np.isfinite(x).all():
    raise ValueError(f'{name} has values up to {np.abs(x).max():.3g}, outside '
                     f'the range of {dtype}; give dtype=bfloat16')
  return y


def _preprocessing(system):
  c = system.config.data
  return weights.Preprocessing(
      system.mean, system.std, data_config.interpolation(c),
      c.image_size / data_config.load_size(c))


def _remove_paths(config):
  """Leaves of the paths in a config, a dict, only what they were of."""
  config['data'].update(data_dir='', cache_dir='')
  for part, fields in (('data', ('labels',)), ('init', ('workdir', 'weights')),
                       ('teacher', ('workdir', 'weights'))):
    for field in fields:
      config[part][field] = pathlib.PurePath(config[part][field]).name

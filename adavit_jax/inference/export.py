"""Exports models as StableHLO: programs that run without their Python code.

An artefact is the serialised form of `jax.export`, parameters inside it as
constants. It runs with jax (and flatbuffers) alone on every platform it was
lowered for; JAX keeps it readable for six months of new versions. What a caller
has to know of its images lies beside it in a JSON file.
"""

import functools
import json
import numbers

from etils import epath
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from adavit_jax.data import data_config as data_config
from adavit_jax.inference import classifier as classifier_lib
from adavit_jax.models import plan
from adavit_jax.policies import fixed

MODES = ('dense', 'static', 'cond', 'compact')
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
_DEFAULT = ('cpu', 'cuda', 'tpu')


def export(clf, path, *, mode, batch_size=None, platforms=_DEFAULT):
  """Writes a classifier as one program.

  'dense' runs all layers and 'static' those of the classifier's own actions:
  `images -> (logits, keep)`. 'cond' asks the policy about one image and
  'compact' about every image of a batch: `(images, threshold) -> (logits,
  keep)`, threshold [] float32 in (0, 1). Images are uint8 [B, S, S, C] of the
  model's size, logits [B, K] float32, keep [B, L1 + L2] the layers that ran,
  MSA then MLP. The passes of 'compact' are as large as suits the backend that
  exports.

  Args:
    clf: `Classifier`.
    path: of the new file; PATH.json is written beside it.
    mode: one of `MODES`.
    batch_size: B; None for any number of images ('dense', 'static'), or for
      the one image of 'cond'. 'compact' needs at least 2.
    platforms: to lower for, of `PLATFORMS`.

  Raises:
    ValueError: if mode, classifier, batch size and platforms do not fit, the
      threshold is outside (0, 1), or the path is a directory.
  """
  _check(clf, mode, batch_size, platforms)
  if epath.Path(path).expanduser().is_dir():
    raise ValueError(f'{path} is a directory; name the file to write')
  model = clf.system.model
  actions = clf.actions
  if mode == 'dense':
    actions = fixed.all_layers(plan.num_layers(model))
  learned = mode in ('cond', 'compact')
  if learned:
    classifier_lib.check_threshold(clf.threshold)
  size = (batch_size or 1) if learned else batch_size
  params = jax.tree.map(np.asarray, clf.params)

  def run(images, threshold=None):
    valid = jnp.ones(images.shape[0])
    logits, ran = classifier_lib.predict(
        clf.system, actions, params, images, valid, threshold)
    return logits, ran.keep

  args = [batch_of(_image(model), size)]
  if learned:
    args.append(jax.ShapeDtypeStruct((), jnp.float32))
  about = dict(mode=mode, threshold=float(clf.threshold) if learned else None,
               num_layers=list(plan.num_layers(model)), **_about(clf))
  # Nothing is written before all of it could be made.
  artefact = lower(run, args, platforms)
  _write(path, artefact, about)


def export_stages(clf, directory, *, batch_size=None, platforms=_DEFAULT):
  """Writes each stage of a model that can stop early as a program of its own.

  The first is `images -> (carry, logits)`, the others `(images, carry) ->
  (carry, logits)`; images as in `export`. Which of them go on is for the caller
  to say: the rule and the thresholds are in the JSON files, and the MACs of
  each stage where they are the same for every image.

  Args:
    clf: `CascadeClassifier`.
    directory: gets the files stage_0, stage_1, ... and their JSON files.
    batch_size: B; None for any.
    platforms: to lower for, of `PLATFORMS`.

  Returns:
    The paths.

  Raises:
    ValueError: for a model with one exit, an unknown platform, a batch size
      below 1, or none where layers are dropped.
  """
  _check_batch_size(batch_size)
  _check_platforms(platforms)
  check_mode(clf, 'stages')
  system = clf.system
  stages, dropping = system.programs(clf.phase), clf.drops_layers
  if dropping and batch_size is None:
    raise ValueError('batch_size=None: where layers are dropped the stages '
                     'need a fixed one')
  artefacts = lower_stages(
      stages, clf.params, _image(system.model), batch_size, platforms)
  about = dict(
      mode='stages', num_stages=len(stages), rule=system.config.exits.rule,
      thresholds=[float(x) for x in clf.thresholds],
      # They differ from image to image where layers are dropped.
      stage_macs=None if dropping else [
          int(system.stage_macs(clf.phase, i)) for i in range(len(stages))],
      unit=system.target.unit if system.target else None, **_about(clf))
  paths = [epath.Path(directory).expanduser() / f'stage_{i}'
           for i in range(len(stages))]
  for i, (path, artefact) in enumerate(zip(paths, artefacts)):
    _write(path, artefact, dict(stage=i, **about))
  return paths


def lower_stages(stages, params, image, batch_size, platforms):
  """Serialises each of a list of stages.

  Args:
    stages: E functions (params, images, carry) -> (carry, logits), see
      `runtime.stages.stages`; their carries of tuples, lists and dicts.
    params: their parameters.
    image: anything with the shape [S, S, C] and the dtype of one image.
    batch_size: B; None for any.
    platforms: of `PLATFORMS`.

  Returns:
    List of E bytes.
  """
  params = jax.tree.map(np.asarray, params)
  images = batch_of(image, batch_size)
  artefacts, args = [], [images]
  for stage in stages:
    run = functools.partial(_stage, stage, params)
    artefacts.append(lower(run, args, platforms))
    args = [images, jax.eval_shape(run, *args)[0]]
  return artefacts


def _stage(stage, params, images, carry=None):
  return stage(params, images, carry)


def batch_of(row, size):
  """Shape and dtype of `size` rows, of any number of them where it is None."""
  if size is None:
    size, = jax_export.symbolic_shape('b')
  return jax.ShapeDtypeStruct((size, *row.shape), row.dtype)


def lower(function, args, platforms):
  """Traces a function and serialises it.

  Args:
    function: of arrays or trees of them.
    args: its arguments as `jax.ShapeDtypeStruct`s.
    platforms: of `PLATFORMS`.

  Returns:
    bytes, for `jax.export.deserialize`.
  """
  exported = jax_export.export(
      jax.jit(function), platforms=tuple(platforms))(*args)
  return bytes(exported.serialize())


def _image(model):
  shape = (model.image_size, model.image_size, model.channels)
  return jax.ShapeDtypeStruct(shape, jnp.uint8)


def _about(clf):
  c = clf.system.config.data
  return dict(
      class_names=list(clf.class_names),
      images=dict(size=clf.system.model.image_size,
                  channels=clf.system.model.channels,
                  resize=data_config.load_size(c),
                  interpolation=data_config.interpolation(c)))


def _write(path, artefact, about):
  path = epath.Path(path).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(artefact)
  epath.Path(f'{path}.json').write_text(json.dumps(about, indent=1))


def check_mode(clf, mode):
  """Raises a ValueError unless a classifier can be exported in a mode.

  Args:
    clf: `Classifier` or `CascadeClassifier`.
    mode: one of `MODES`, or 'stages' for `export_stages`.
  """
  known = (*MODES, 'stages')
  if mode not in known:
    raise ValueError(f'mode={mode!r}; known: {known}')
  if mode not in clf.EXPORTS:
    raise ValueError(f'mode={mode!r}: this is a {type(clf).__name__}, which is '
                     f'exported as one of {clf.EXPORTS}')


def _check(clf, mode, batch_size, platforms):
  if mode == 'stages':
    raise ValueError("mode='stages' is for export_stages")
  check_mode(clf, mode)
  if mode == 'static' and clf.actions is None:
    raise ValueError("mode='static' takes a classifier with given actions, and "
                     "this one asks its policy: use 'cond' or 'compact', or "
                     "Classifier(..., actions=...)")
  if mode in ('cond', 'compact') and clf.actions is not None:
    raise ValueError(f"mode={mode!r} needs a trained policy, and this "
                     f"classifier runs given layers: use 'static' or 'dense'")
  _check_batch_size(batch_size)
  if mode == 'cond' and batch_size not in (None, 1):
    raise ValueError(f"batch_size={batch_size}: mode='cond' takes one image; "
                     f"use 'compact' for more")
  if mode == 'compact' and (batch_size is None or batch_size < 2):
    raise ValueError(f"batch_size={batch_size}: mode='compact' needs a fixed "
                     f"one of at least 2; use 'cond' for one image")
  _check_platforms(platforms)


def _check_batch_size(batch_size):
  if batch_size is not None and not (
      isinstance(batch_size, numbers.Integral) and batch_size >= 1):
    raise ValueError(f'batch_size={batch_size} must be a whole number of at '
                     f'least 1, or None for any')


def _check_platforms(platforms):
  if (isinstance(platforms, str) or not platforms
      or not set(platforms) <= set(PLATFORMS)):
    raise ValueError(f'platforms={platforms!r}: give a list of some of '
                     f'{PLATFORMS}')

"""Exports models as programs that run without their Python code.

A program contains the parameters as constants, and a JSON file beside it
describes the images that it takes. It has one of two formats. 'stablehlo' is
serialized by `jax.export`: it runs with jax (and flatbuffers) alone, on every
platform it was lowered for; JAX keeps it readable for six months of new
versions. 'onnx' runs in onnxruntime and others, without JAX.
"""

import functools
import json
import numbers

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from adavit_jax import paths
from adavit_jax.data import data_config as data_config
from adavit_jax.inference import onnx_program
from adavit_jax.inference import predict
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed

MODES = ('dense', 'static', 'cond', 'compact')
# With those of `export_stages` and of `saving.save`.
KNOWN = (*MODES, 'stages', 'weights')
FORMATS = ('stablehlo', 'onnx')
_MAX_BATCH_SIZE = 2**20
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
_DEFAULT = ('cpu', 'cuda', 'tpu')


def export(clf, path, *, mode, batch_size=None, platforms=_DEFAULT,
           format='stablehlo'):
  """Writes a classifier as one program.

  'dense' runs all layers and 'static' those of the classifier's actions:
  `images -> (logits, keep)`. In 'cond' the policy decides for one image and in
  'compact' for every image of a batch: `(images, number) -> (logits, keep)`,
  with its threshold or price, [] float32. Images are uint8 [B, S, S, C] in the
  model's size, logits are [B, K] float32, and keep [B, L1 + L2] marks the
  layers that ran, MSA then MLP. The passes of 'compact' are sized for the
  backend that exports.

  The JSON file holds the classifier's number and its `promise`, if it has one.

  Args:
    clf: `Classifier`.
    path: path of the new file; PATH.json is written beside it.
    mode: one of `MODES`.
    batch_size: B. None for any number of images ('dense', 'static'), or for
      the single image of 'cond'. 'compact' needs at least 2.
    platforms: platforms to lower for, from `PLATFORMS`; for 'stablehlo'.
    format: one of `FORMATS`. In 'onnx' the names are those above; it is for
      'dense' and 'static'.

  Raises:
    ValueError: if mode, format, batch size or platforms are invalid or do not
      fit the classifier, the path cannot be written, or jax2onnx is not
      installed or cannot convert the model.
  """
  _check_format(format, mode in ('cond', 'compact'), f'mode={mode!r}')
  _check(clf, mode, batch_size, platforms)
  path = _to_write(path)
  model = clf.system.model
  actions = clf.actions
  if mode == 'dense':
    actions = fixed.all_layers(plan.num_layers(model))
  learned = mode in ('cond', 'compact')
  size = (batch_size or 1) if learned else batch_size
  params = jax.tree.map(np.asarray, clf.params)

  def run(images, number=None):
    valid = jnp.ones(images.shape[0])
    logits, ran = predict.predict(
        clf.system, actions, params, images, valid, number)
    return logits, ran.keep

  args = [batch_of(_image(model), size)]
  if learned:
    args.append(jax.ShapeDtypeStruct((), jnp.float32))
  metadata = dict(
      mode=mode, format=format, **_number(clf, learned),
      num_layers=list(plan.num_layers(model)), **_metadata(clf),
      promise=_promise(clf) if learned else None)
  # Lowered before anything is written, since it may fail.
  if format == 'onnx':
    artifact = onnx_program.convert(run, args, (['images'], ['logits', 'keep']))
  else:
    artifact = lower(run, args, platforms)
  paths.write(_files(path, artifact, metadata))


def export_stages(clf, directory, *, batch_size=None, platforms=_DEFAULT,
                  format='stablehlo'):
  """Writes each stage of a model with exits as a separate program.

  The first is `images -> (carry, logits)`, the others are `(images, carry) ->
  (carry, logits)`; images are as in `export`. The caller decides which images
  continue: the JSON files contain the rule, the thresholds, and the MACs of
  each stage if they are the same for every image.

  Args:
    clf: `CascadeClassifier`.
    directory: directory for stage_0, stage_1, ... (stage_0.onnx, ...) and their
      JSON files.
    batch_size: B; None for any.
    platforms: platforms to lower for, from `PLATFORMS`; for 'stablehlo'.
    format: one of `FORMATS`. In 'onnx' the leaves of the carry are the inputs
      carry_0, carry_1, ... and the outputs next_0, next_1, ...; it is for
      stages without a policy.

  Returns:
    The paths of the programs.

  Raises:
    ValueError: if the classifier cannot be exported in stages or in this
      format, a platform or the format is unknown, batch_size is not a positive
      integer, batch_size is None although a policy drops layers, or jax2onnx is
      not installed or cannot convert the model.
  """
  check_mode(clf, 'stages')
  _check_format(format, clf.drops_layers, 'a policy that drops layers')
  _check_batch_size(batch_size)
  _check_platforms(platforms)
  system = clf.system
  after, dropping = system.after(clf.phase), clf.drops_layers
  stages = after.programs()
  suffix = '.onnx' if format == 'onnx' else ''
  directory = paths.expanded(directory, 'output')
  files = [_to_write(f'{directory}/stage_{i}{suffix}')
           for i in range(len(stages))]
  if dropping and batch_size is None:
    raise ValueError('batch_size=None: stages in which a policy drops layers '
                     'need a fixed batch size')
  if format == 'onnx':
    serialize = lambda run, args: onnx_program.convert(
        run, args, (['images', 'carry_'][:len(args)], ['next_', 'logits']))
  else:
    serialize = lambda run, args: lower(run, args, platforms)
  artifacts = _each_stage(
      stages, clf.params, _image(system.model), batch_size, serialize)
  metadata = dict(
      mode='stages', format=format, num_stages=len(stages),
      rule=system.config.exits.rule,
      thresholds=[float(x) for x in clf.thresholds],
      # A policy's MACs differ from image to image.
      stage_macs=None if dropping else [
          int(after.stage_macs(i)) for i in range(len(stages))],
      unit=system.target.unit if system.target else None, **_metadata(clf),
      promise=_promise(clf))
  written = {}
  for i, (file, artifact) in enumerate(zip(files, artifacts)):
    written |= _files(file, artifact, dict(stage=i, **metadata))
  paths.write(written)
  return files


def _each_stage(stages, params, image, batch_size, serialize):
  """Serializes each of a list of stages.

  Args:
    stages: E functions (params, images, carry) -> (carry, logits), see
      `runtime.stages.stages`; carries consist of tuples, lists and dicts.
    params: their parameters.
    image: object with the shape [S, S, C] and the dtype of one image.
    batch_size: B; None for any.
    serialize: function (function, args) -> bytes, such as `lower`.

  Returns:
    List of E bytes objects.
  """
  params = jax.tree.map(np.asarray, params)
  images = batch_of(image, batch_size)
  artifacts, args = [], [images]
  for stage in stages:
    run = functools.partial(_stage, stage, params)
    artifacts.append(serialize(run, args))
    args = [images, jax.eval_shape(run, *args)[0]]
  return artifacts


def _stage(stage, params, images, carry=None):
  return stage(params, images, carry)


def batch_of(row, size):
  """Returns shape and dtype of `size` rows; None for any number of rows."""
  if size is None:
    size, = jax_export.symbolic_shape('b')
  return jax.ShapeDtypeStruct((size, *row.shape), row.dtype)


def lower(function, args, platforms):
  """Traces a function and serializes it.

  Args:
    function: function of arrays or pytrees of arrays.
    args: its arguments as `jax.ShapeDtypeStruct`s.
    platforms: platforms to lower for, from `PLATFORMS`.

  Returns:
    bytes, for `jax.export.deserialize`.
  """
  exported = jax_export.export(
      jax.jit(function), platforms=tuple(platforms))(*args)
  return bytes(exported.serialize())


def _image(model):
  shape = (model.image_size, model.image_size, model.channels)
  return jax.ShapeDtypeStruct(shape, jnp.uint8)


def _number(clf, learned):
  """Returns the threshold or price that is written beside a program."""
  return {clf.knob.name: float(clf.number) if learned else None}


def _metadata(clf):
  c = clf.system.config.data
  return dict(
      class_names=list(clf.class_names),
      images=dict(size=clf.system.model.image_size,
                  channels=clf.system.model.channels,
                  resize=data_config.load_size(c),
                  interpolation=data_config.interpolation(c)))


def _promise(clf):
  return clf.promise and clf.promise.as_dict()


def _to_write(path):
  """Returns the path of a program, if it and its description can be written.
  """
  paths.to_write(f'{path}.json', 'output')
  return paths.to_write(path, 'output')


def _files(path, artifact, metadata):
  return {path: artifact, f'{path}.json': json.dumps(metadata, indent=1)}


def check_mode(clf, mode):
  """Raises a ValueError unless a classifier can be exported in a mode.

  Args:
    clf: `Classifier` or `CascadeClassifier`.
    mode: one of `KNOWN`.
  """
  if mode not in KNOWN:
    raise ValueError(f'mode={mode!r}; known: {KNOWN}')
  if mode not in clf.EXPORTS:
    raise ValueError(f'mode={mode!r} is not for a {type(clf).__name__}; use '
                     f'one of {clf.EXPORTS}')


def _check_format(format, decides, what):
  """Raises a ValueError for an unknown format, or if a policy `decides`."""
  if format not in FORMATS:
    raise ValueError(f'format={format!r}; known: {FORMATS}')
  if format == 'onnx' and decides:
    raise ValueError(f"format='onnx' is not for {what}, since the conditionals "
                     f'of a policy are not converted; use dense or static')


def _check(clf, mode, batch_size, platforms):
  if mode in ('stages', 'weights'):
    raise ValueError(f'mode={mode!r} is for export_stages or save')
  check_mode(clf, mode)
  if mode == 'static' and not isinstance(clf.actions, Actions):
    raise ValueError("mode='static' needs a classifier with fixed actions, but "
                     "this one uses a policy; use 'cond' or 'compact', or set "
                     "its actions to a mask")
  if mode in ('cond', 'compact') and clf.actions is not None:
    raise ValueError(f"mode={mode!r} needs a trained policy, but this "
                     f"classifier has actions={clf.actions}; set them to None, "
                     f"or use 'static' or 'dense'")
  _check_batch_size(batch_size)
  if mode == 'cond' and batch_size not in (None, 1):
    raise ValueError(f"batch_size={batch_size}: mode='cond' takes one image; "
                     f"use 'compact' for more")
  if mode == 'compact' and (batch_size is None or batch_size < 2):
    raise ValueError(f"batch_size={batch_size}: mode='compact' needs a fixed "
                     f"batch size of at least 2; use 'cond' for one image")
  _check_platforms(platforms)


def _check_batch_size(batch_size):
  if batch_size is not None and not (
      isinstance(batch_size, numbers.Integral)
      and 1 <= batch_size <= _MAX_BATCH_SIZE):
    raise ValueError(f'batch_size={batch_size} is not an integer in 1..'
                     f'{_MAX_BATCH_SIZE} or None')


def _check_platforms(platforms):
  if (isinstance(platforms, str) or not platforms
      or not set(platforms) <= set(PLATFORMS)):
    raise ValueError(f'platforms={platforms!r}: give a list of platforms from '
                     f'{PLATFORMS}')

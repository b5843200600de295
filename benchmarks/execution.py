"""Measures the time that a dropped layer saves, in every execution mode:

  python benchmarks/execution.py --output=execution.json

This compares dense, compact (random actions per image), cond and static (random
actions, one decision for the batch) over batch sizes and keep rates, from
normalized images to logits. At batch size 1 cond replaces compact. efficiency =
dense time x MAC ratio / time; it is 1 if time is proportional to MACs. MACs of
tokens that are not read are not counted, since they are not computed. Ratios
are to the dense model timed in the same rounds; the row 'dense' has separate
rounds. timm is added with the same weights if torch and timm can be imported.

  python benchmarks/execution.py --models=dvt_deit_small_224 --batches=32 \\
      --shares=0.5,0.3,0.2

This times the cascade of a model with own exits and random weights, with
thresholds that let these shares of the images leave at each exit.

  python benchmarks/execution.py --models=levit_256 --batches=32 \\
      --keeps=0.5 --stacks

This times each stack of encoders alone, in compact, with the bridge before it.

  python benchmarks/execution.py --models=evo_deit_tiny_224 \\
      --variants=keep_ratio=1,keep_ratio=0.7,keep_ratio=0.5

This times all layers of models that differ in an attribute and share their
parameters; the first one is what the others are compared with.

  python benchmarks/execution.py --workdir=DIR --output=trained.json

This times a trained policy, or a cascade of exits, as `adavit_jax.load(DIR)`
runs it, beside the dense model; after a dense phase the dense model alone. DIR
may be the name of a model of the package, such as cifar10-exits.
"""

import functools
import json
import os
import platform

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

import adavit_jax
from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.runs import orbax_manager
from adavit_jax.runtime import modes
from adavit_jax import errors
import cascades
import stacks
import timing
import timm_rows
import trained
import variants

_MODELS = flags.DEFINE_list(
    'models', ['vit_tiny_patch16_224', 'vit_cifar_patch4_32'],
    'Names of models.')
_BATCHES = flags.DEFINE_list('batches', ['1', '8', '32', '128', '256'],
                             'Batch sizes.')
_KEEPS = flags.DEFINE_list('keeps', ['1.0', '0.75', '0.6', '0.5', '0.25'],
                           'Fractions of adaptive layers that run.')
_MODES = flags.DEFINE_list('modes', ['cond', 'compact', 'static'],
                           'Modes to compare with the dense model.')
_CHUNKS = flags.DEFINE_list(
    'chunks', [], 'Images in one pass of compact, to compare with the size '
    'that the library chooses.')
_STACKS = flags.DEFINE_bool(
    'stacks', False, 'Times each stack of encoders alone, in compact.')
_SHARES = flags.DEFINE_list(
    'shares', [], 'Shares of the images that leave at each exit; times the '
    'cascades of the models, and no dropped layers.')
_VARIANTS = flags.DEFINE_list(
    'variants', [], 'ATTRIBUTE=VALUE of models to compare with the first; '
    'times all layers alone.')
_TIMM = flags.DEFINE_bool('timm', True, 'Times timm too, where it can be '
                          'imported.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Compute dtype.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed rounds.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')
_WORKDIR = flags.DEFINE_list(
    'workdir', [], 'Directories of runs to time instead of models.')
_THRESHOLD = flags.DEFINE_float(
    'threshold', None, 'Threshold of the policy or of all exits. Default: '
    "calibrated by eval.py, else for a policy the config's.")
_DECIDE = flags.DEFINE_string(
    'decide', None, 'What chooses the layers of a run with a policy: '
    "'networks' or 'value'. Default: the config's.")
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Data directory, if it moved.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    _run_all()
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error


def _run_all():
  batches = _numbers('batches', _BATCHES.value, int, lambda b: b > 0,
                     'positive batch sizes')
  keeps = _numbers('keeps', _KEEPS.value, float, lambda k: 0 < k <= 1,
                   'numbers in (0, 1]')
  if _CHUNKS.value:
    _numbers('chunks', _CHUNKS.value, int, lambda c: c > 0,
             'positive numbers of images')
  if unknown := set(_MODES.value) - {'cond', 'compact', 'static'}:
    raise ValueError(f'--modes has {sorted(unknown)}; known: cond, compact, '
                     f'static')
  named = _named_models()
  shares = []
  if _SHARES.value:
    shares = _numbers('shares', _SHARES.value, float, lambda s: 0 <= s <= 1,
                      'numbers in [0, 1]')
    for name, model in named.items():
      cascades.check(name, model, shares)
  for name in named if _VARIANTS.value else ():
    variants.create(name, _VARIANTS.value, _DTYPE.value)
  rows = []
  _write(rows)  # fails before anything is timed if the file is not writable
  print(f'{jax.devices()[0].device_kind}, {timing.num_cores()} CPU cores '
        f'({platform.machine()}), jax {jax.__version__}, medians of '
        f'{_REPEATS.value} rounds in alternation\n')
  print(timing.header())
  for row in _rows(named, batches, keeps, shares):
    rows.append(row)
    print(timing.format_row(row), flush=True)
    _write(rows)  # after every row, so that an interrupted run keeps them


def _write(rows):
  if _OUTPUT.value:
    with open(_OUTPUT.value, 'w', encoding='utf-8') as f:
      json.dump(rows, f, indent=1)


def _numbers(flag, texts, kind, valid, expected):
  """Parses the numbers of a flag; raises a ValueError if one is invalid."""
  try:
    numbers = [kind(text) for text in texts]
  except ValueError:
    numbers = []
  if not numbers or not all(map(valid, numbers)):
    raise ValueError(f'--{flag}={",".join(texts)} must be a list of {expected}')
  return numbers


def _named_models():
  """Returns {name: model} to time; with --workdir checks the runs, returns {}.
  """
  if _WORKDIR.value:
    for workdir in map(os.path.expanduser, _WORKDIR.value):
      trained.check(workdir, _THRESHOLD.value)
    return {}
  return {name: adavit_jax.create(name, dtype=_DTYPE.value)
          for name in _MODELS.value}


def _rows(named, batches, keeps, shares):
  for workdir in map(os.path.expanduser, _WORKDIR.value):
    yield from trained.rows(
        workdir, batches, repeats=_REPEATS.value,
        threshold=_THRESHOLD.value, data_dir=_DATA_DIR.value,
        decide=_DECIDE.value)
  for name, model in named.items():
    params = _random_params(model)
    for batch in batches:
      if _VARIANTS.value:
        yield from variants.rows(
            name, variants.create(name, _VARIANTS.value, _DTYPE.value), params,
            _images(model, batch), repeats=_REPEATS.value, dtype=_DTYPE.value)
      elif shares:
        yield from cascades.rows(
            name, model, models.fold(model, params), batch, shares,
            repeats=_REPEATS.value, dtype=_DTYPE.value)
      elif _STACKS.value:
        for keep in keeps:
          yield from stacks.rows(
              name, model, models.fold(model, params), _images(model, batch),
              keep, repeats=_REPEATS.value, dtype=_DTYPE.value)
      else:
        yield from model_rows(name, model, params, batch, keeps)


def _random_params(model):
  """Returns random parameters, so that no branch is zero; not folded.

  They are drawn by NumPy, since an initialization takes long to compile.
  """
  rng = np.random.default_rng(1)
  def draw(path, like):
    one = path[-1].key in ('scale', 'var')  # of a normalization
    return jnp.asarray(
        one + 0.05 * rng.standard_normal(like.shape, np.float32))
  return jax.tree.map_with_path(draw, jax.eval_shape(
      lambda: adavit_jax.init_params(model, jax.random.key(0))))


def _images(model, batch):
  """Returns normalized images [B, S, S, C]."""
  size = model.image_size
  return jax.random.normal(
      jax.random.key(2), (batch, size, size, model.channels))


def model_rows(name, model, params, batch, keeps):
  """Yields the rows of one model at one batch size.

  Args:
    name: name of the model.
    model: a `Backbone`.
    params: its parameters, not folded.
    batch: B.
    keeps: fractions of adaptive layers that run.

  Yields:
    dicts of `timing.row`.
  """
  images = _images(model, batch)
  unfolded, params = params, models.fold(model, params)
  dense, stats = timing.compile_jit(
      jax.jit(lambda params, images: modes.dense(model, params, images).total),
      params, images)
  run_dense = lambda i: dense(params, images)
  row = functools.partial(timing.row, dtype=_DTYPE.value)
  seconds = timing.alternate({'dense': run_dense}, _REPEATS.value)['dense']
  yield row(name, 'dense', batch, 1, seconds, seconds, 1, **stats)
  if _TIMM.value:
    yield from timm_rows.rows(
        name, model, unfolded, images, run_dense, _REPEATS.value)
  if not _MODES.value:
    return

  programs = {}
  for mode in _MODES.value:
    if mode == 'cond' or mode == 'compact' and batch > 1:
      programs.update(_compile(model, params, images, mode))
  every = fixed.all_layers(plan.num_layers(model))
  for keep in keeps:
    runs = {label: (stats, _draws(model, batch, keep, mode), program)
            for label, (mode, program, stats) in programs.items()}
    if 'static' in _MODES.value:
      runs['static'] = _static(model, params, images, keep)
    functions = {'dense': run_dense, **{
        label: functools.partial(_run, program, params, images, draws)
        for label, (_, draws, program) in runs.items()}}
    times = timing.alternate(functions, _REPEATS.value)
    for label, (stats, draws, _) in runs.items():
      ratio = [np.mean(_macs(model, a)) / _macs(model, every)
               for a in draws[1:]]
      yield row(name, label, batch, keep, times[label], times['dense'], ratio,
                **stats)


def _macs(model, actions):
  """Returns MACs without those of tokens that are not read, in every mode."""
  return cost.of(model).adaptive(actions) - cost.left_out(model, actions)


def _run(program, params, images, draws, i):
  return program(params, images, draws[i])


def _compile(model, params, images, mode):
  """Returns {label: (mode, program, stats)} of a mode, for every chunk size."""
  batch = (len(images),) if mode == 'compact' else ()
  actions = Actions(*(jax.ShapeDtypeStruct((*batch, num), jnp.float32)
                      for num in plan.num_layers(model)))
  def program(chunk=None):
    def run(params, images, actions):
      z1 = modes.before_policy(model, params, images)
      return modes.after_policy(
          model, params, z1, actions, mode, images=images, chunk=chunk).total
    return (mode, *timing.compile_jit(jax.jit(run), params, images, actions))
  programs = {mode: program()}
  if mode == 'compact':
    programs.update({f'compact, {chunk} a pass': program(int(chunk))
                     for chunk in _CHUNKS.value if int(chunk) <= len(images)})
  return programs


def _static(model, params, images, keep):
  """Returns (stats, draws, program) of one mask for all rounds.

  Each mask needs a separate program.
  """
  mask = _draws(model, len(images), keep, 'static')[0]
  program, stats = timing.compile_jit(
      jax.jit(lambda params, images: modes.forward(
          model, params, images, mask, mode='static').total), params, images)
  return (stats, [mask] * (_REPEATS.value + 1),
          lambda params, images, mask: program(params, images))


def _draws(model, batch, keep, mode):
  """Draws random `Actions` for every round; for compact one row per image."""
  num_layers, draws = plan.num_layers(model), []
  for i in range(_REPEATS.value + 1):
    rng = np.random.default_rng(i)
    if mode == 'compact':
      chosen = fixed.uniform(jax.random.key(i), batch, num_layers, keep=keep)
    else:
      # An exact fraction, since a single draw can be far from the mean.
      total = round(sum(num_layers) * keep)
      msa = total * num_layers.msa / sum(num_layers)
      msa = int(rng.choice([np.floor(msa), np.ceil(msa)]))
      chosen = Actions(*(
          rng.permutation(np.arange(num) < k).astype(np.float32)
          for k, num in zip((msa, total - msa), num_layers)))
    draws.append(Actions(*map(np.asarray, chosen)))
  return draws


if __name__ == '__main__':
  orbax_manager.quiet_orbax()
  app.run(main)

"""Exports a trained run to one StableHLO or ONNX file, or to one of weights:

  python export.py --workdir=DIR --mode=cond --output=FILE
  python export.py --workdir=DIR --mode=dense --format=onnx --output=FILE.onnx
  python examples/run_exported.py FILE IMAGE...

A StableHLO file runs with jax alone, on every platform it was lowered for. An
ONNX file runs in onnxruntime and others, without jax. For a model with exits,
--mode=stages writes a file for each stage into the directory FILE, which
run_exported.py accepts too.

  python export.py --workdir=DIR --mode=weights --output=FILE.safetensors

writes no program but the parameters and the config: `adavit_jax.load(FILE)`,
predict.py and this script (--workdir=FILE) read it as they read DIR.
"""

from absl import app
from absl import flags
from absl import logging
from etils import epath

import adavit_jax
from adavit_jax import errors
from adavit_jax import paths
from adavit_jax.exits import confidence
from adavit_jax.inference import export
from adavit_jax.inference import run_sources
from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.policies import knob as knob_lib
from adavit_jax.report import promised_row
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import run_file

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of a run, or what else adavit_jax.load takes.',
    required=True)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'File to write. A .json file beside a program describes '
    'the images that it takes.', required=True)
_MODE = flags.DEFINE_enum(
    'mode', None, export.KNOWN, 'dense: all layers. static: the '
    'mask of a static phase, or --actions. cond: the policy decides for one '
    'image. compact: the policy decides for each image of a batch. stages: '
    'each stage of a model with exits. weights: the run itself.',
    required=True)
_FORMAT = flags.DEFINE_enum(
    'format', 'stablehlo', export.FORMATS, 'stablehlo: for jax. onnx: for '
    'other runtimes, in the modes dense, static, and stages without a policy; '
    "needs the extra 'onnx'.")
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float16', run_file.DTYPES, 'For --mode=weights: type of arrays '
    'with two or more axes. float32 keeps all parameters as they are.')
_ACTIONS = flags.DEFINE_string(
    'actions', None, 'For --mode=static: 1 to 5 for a policy of Table 1 of the '
    'patent, or a mask of digits 0 and 1, MSA then MLP layers.')
_BATCH_SIZE = flags.DEFINE_integer(
    'batch_size', None, 'Images per call; required for compact. Default: one '
    'for cond, else any number.', lower_bound=1)
_PLATFORMS = flags.DEFINE_list(
    'platforms', ['cpu', 'cuda', 'tpu'],
    f'Platforms to lower for, from {",".join(export.PLATFORMS)}.')
_PHASE = flags.DEFINE_string(
    'phase', '', 'Use the checkpoint at the end of this phase. Default: the '
    'newest checkpoint.')
_RULE = flags.DEFINE_string(
    'rule', None, 'Confidence rule of a model with exits, as in eval.py. '
    "Default: the config's exits.rule.")
_BEST = flags.DEFINE_bool(
    'best', False, 'Use the best checkpoint of the last phase, not its last.')
_DECIDE = flags.DEFINE_string(
    'decide', None, 'What chooses the layers, as in eval.py. Default: the '
    "config's nets.decide.")
_PRICE = flags.DEFINE_float(
    'price', None, 'Price of a value policy to suggest in the .json file. '
    'Default: that of the fit.')
_THRESHOLD = flags.DEFINE_list(
    'threshold', None, 'Threshold to suggest in the .json file, as printed by '
    "eval.py: the policy's, or that of each exit except the last. Default: for "
    "a policy the config's; for exits one that lets no image leave early.")
_PROMISE = flags.DEFINE_bool(
    'promise', False, 'Suggest the thresholds that eval.py --risk found, and '
    'write what they promise into the .json file.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    threshold = confidence.parse_thresholds(_THRESHOLD.value)
    _check_flags(threshold)
    _check_output()
    promise = _promise() if _PROMISE.value else None
    clf = adavit_jax.load(_WORKDIR.value, phase=_PHASE.value, best=_BEST.value,
                          rule=promise.rule if promise else _RULE.value,
                          decide=_decide(promise))
    export.check_mode(clf, _MODE.value)
    if promise:
      clf.promise = promise
    options = dict(batch_size=_BATCH_SIZE.value, platforms=_PLATFORMS.value,
                   format=_FORMAT.value)
    if _ACTIONS.value is not None:
      clf.actions = fixed.parse_choice(
          _ACTIONS.value, plan.num_layers(clf.system.model))
    _set_numbers(clf, threshold)
    if _MODE.value == 'weights':
      adavit_jax.save(clf, _OUTPUT.value, dtype=_DTYPE.value)
      print(f'wrote {_OUTPUT.value}')
      _suggest_eval(clf, threshold, promise)
      return
    if _MODE.value == 'stages':
      files = export.export_stages(clf, _OUTPUT.value, **options)
      print(*(f'wrote {path} and {path}.json' for path in files), sep='\n')
      _hint()
      return
    export.export(clf, _OUTPUT.value, mode=_MODE.value, **options)
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error
  print(f'wrote {_OUTPUT.value} and {_OUTPUT.value}.json')
  if _MODE.value in ('cond', 'compact'):
    _suggest_eval(clf, threshold, promise)
  _hint()


def _promise():
  given = [_THRESHOLD.value, _PRICE.value, _RULE.value, _ACTIONS.value]
  if any(x is not None for x in given) or _MODE.value in ('dense', 'static'):
    raise ValueError('--promise sets thresholds and their rule; leave out '
                     '--threshold, --price, --rule and --actions, and give '
                     '--mode=cond, compact, stages or weights')
  with run_sources.opened(_WORKDIR.value) as run:
    saved = run.find(phase=_PHASE.value, best=_BEST.value)
  if saved.kind == 'file':
    raise ValueError(f'--promise reads the report of a work directory, but '
                     f'--workdir={_WORKDIR.value} is a run in one file, whose '
                     f'own promise is used anyway; leave out --promise')
  return promised_row.read(_WORKDIR.value, saved, _BEST.value)


def _check_output():
  if _MODE.value == 'weights':
    run_file.check(_OUTPUT.value, _DTYPE.value)
  elif _MODE.value != 'stages':
    paths.to_write(_OUTPUT.value, '--output')


def _check_flags(threshold):
  if _ACTIONS.value is not None and _MODE.value != 'static':
    raise ValueError(f'--actions={_ACTIONS.value} is for --mode=static, not '
                     f'--mode={_MODE.value}; leave it out')
  if _PLATFORMS.present and _FORMAT.value == 'onnx':
    raise ValueError(f'--platforms={",".join(_PLATFORMS.value)} is for '
                     f'--format=stablehlo; leave it out')
  if threshold is not None and _MODE.value in ('dense', 'static'):
    raise ValueError(f'--threshold={threshold} has no effect with '
                     f'--mode={_MODE.value}, which uses no policy; leave it '
                     f'out, or give --mode=cond, compact, stages or weights')
  if _PRICE.value is not None and _MODE.value not in (
      'cond', 'compact', 'weights'):
    raise ValueError(f'--price={_PRICE.value} has no effect with '
                     f'--mode={_MODE.value}; leave it out, or give '
                     f'--mode=cond, compact or weights')
  of_programs = _FORMAT, _BATCH_SIZE, _PLATFORMS
  for flag in of_programs if _MODE.value == 'weights' else (_DTYPE,):
    if flag.present:
      raise ValueError(f'--{flag.name}={flag.value} has no effect with '
                       f'--mode={_MODE.value}; leave it out')


def _decide(promise):
  """Returns what chooses the layers: what the promise is about, if any."""
  if _DECIDE.value is None and promise and promise.knob:
    return next(name for name, knob in knob_lib.KNOBS.items()
                if knob.name == promise.knob)
  return _DECIDE.value


def _set_numbers(clf, threshold):
  """Sets thresholds or the price, if they are given.

  Raises:
    ValueError: if one is out of range, or not for this model.
  """
  if isinstance(clf, adavit_jax.CascadeClassifier):
    if _PRICE.value is not None:
      raise ValueError(f'--price={_PRICE.value} is not for a model with exits; '
                       f'leave it out')
    if threshold is not None:
      clf.thresholds = threshold
    return
  for name, number in (('threshold', threshold), ('price', _PRICE.value)):
    if number is None:
      continue
    if clf.system.nets is None:
      raise ValueError(f'--{name}={number} is for a policy, but this model has '
                       f'none; leave it out')
    if name != clf.knob.name:
      raise ValueError(f'--{name}={number} is not for this policy, which has a '
                       f'{clf.knob.name}; leave it out')
    setattr(clf, name, number)


def _suggest_eval(clf, threshold, promise):
  """Says how to find a better number for a policy than the default."""
  if isinstance(clf, adavit_jax.CascadeClassifier) or clf.actions is not None:
    return
  given = threshold, _PRICE.value, promise
  # A run in a file has the number that it was saved with.
  of_run = epath.Path(clf.loaded.workdir).is_dir()
  if of_run and all(x is None for x in given):
    name = clf.knob.name
    print(f'with the default {name} {clf.number:.4g}; for one that meets '
          f'mac_target, run python eval.py --workdir={_WORKDIR.value} and give '
          f'its {name} as --{name}')


def _hint():
  print(f'now: python examples/run_exported.py {_OUTPUT.value} IMAGE...')


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  orbax_manager.quiet_orbax()
  app.run(main)

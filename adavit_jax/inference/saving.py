"""Writes a loaded run to one file, which can be loaded as the run is."""

from absl import logging

from adavit_jax.inference import run_sources
from adavit_jax.inference import settings
from adavit_jax.runs import run_file
from adavit_jax.train import state as state_lib


def save(clf, path, *, dtype='float16', class_names=None):
  """Writes a classifier to one file, which `load` reads.

  It holds the parameters and the config of its run, and its thresholds, layers
  and `promise`. With 16 bits, logits change a little, and so may what the
  promise is about: calibrate the loaded file, and save it again, which changes
  no parameter.

  Args:
    clf: `Classifier` or `CascadeClassifier` that `load` made.
    path: path of the new '.safetensors' file; parent directories are created.
    dtype: of arrays with two or more axes: 'float16', 'bfloat16' or 'float32',
      in which nothing changes. Other arrays are kept in float32.
    class_names: K names for the file; None for those of the run.

  Raises:
    ValueError: if the classifier was not made by `load`, its run went on since,
      the path has another suffix, the dtype is unknown, values exceed its
      range, or the names are not K.
  """
  if clf.loaded is None:
    raise ValueError('clf was not made by adavit_jax.load, and cannot be saved '
                     'without the config of a run')
  run_file.check(path, dtype)
  arguments = dict(clf.loaded.arguments)
  del arguments['max_batch_size']
  with run_sources.opened(clf.loaded.workdir) as run:
    info, system, state = run_sources.read(run, **arguments)
  if int(state.step) != clf.loaded.step:
    raise ValueError(f'{clf.loaded.workdir} was at step {clf.loaded.step} when '
                     f'clf was loaded, and is at {int(state.step)} now: load '
                     f'it again')
  if class_names is not None:
    num = len(info['dataset']['class_names'])
    if len(class_names) != num:
      raise ValueError(f'class_names={class_names} must be {num}, as many as '
                       f'the model has classes')
    info['dataset'] = {**info['dataset'], 'class_names': list(class_names)}
  exact = run_file.write(
      path, info, int(state.step), system, state_lib.final_params(state),
      settings.as_dict(clf), dtype)
  if clf.promise is not None and not exact:
    logging.warning(
        'the promise in %s was tested before parameters were rounded to %s; to '
        'test it on those of the file, load that, calibrate and save again',
        path, dtype)

"""Writes a loaded run to one file, which can be loaded as the run is."""

from adavit_jax.inference import settings
from adavit_jax.inference import sources
from adavit_jax.runs import run_file
from adavit_jax.train import state as state_lib


def save(clf, path, *, dtype='float16'):
  """Writes a classifier to one file, which `load` reads.

  It holds the parameters and the config of its run, and its thresholds, layers
  and `promise`. With 16 bits, logits change a little, and so may what the
  promise is about: calibrate the loaded file, and save it again, which changes
  no parameter.

  Args:
    clf: `Classifier` or `CascadeClassifier` that `load` made.
    path: path of the new '.safetensors' file; parent directories are created.
    dtype: of matrices in the file: 'float16', 'bfloat16' or 'float32', in which
      nothing changes. Vectors are kept in float32.

  Raises:
    ValueError: if the classifier was not made by `load`, its run went on since,
      the path has another suffix, the dtype is unknown, or values exceed its
      range.
  """
  if clf.loaded is None:
    raise ValueError('clf was not made by adavit_jax.load, and cannot be saved '
                     'without the config of a run')
  arguments = dict(clf.loaded.arguments)
  del arguments['max_batch_size']
  with sources.opened(clf.loaded.workdir) as run:
    info, system, state = sources.read(run, **arguments)
  if int(state.step) != clf.loaded.step:
    raise ValueError(f'{clf.loaded.workdir} was at step {clf.loaded.step} when '
                     f'clf was loaded, and is at {int(state.step)} now: load '
                     f'it again')
  run_file.write(path, info, int(state.step), system,
                 state_lib.final_params(state), settings.as_dict(clf), dtype)

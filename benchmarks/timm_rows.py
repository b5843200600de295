"""The same ViT in timm, with the same weights, where it can be imported.

timm runs in processes of its own, as for its users: in one process, either
library's idle threads take the cores from the other's, and the memory that one
returns or keeps changes how fast the other gets its own.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile

import numpy as np

import timing

_WORKER = os.path.join(os.path.dirname(__file__), 'timm_worker.py')


def rows(name, model, params, images, run_dense, repeats):
  """Times timm's eager and compiled model in alternation with ours.

  Args:
    name: of the model, ours and timm's.
    model: a `ViT`.
    params: its parameters.
    images: [B, S, S, C], normalised.
    run_dense: our dense model, a function of the round.
    repeats: rounds.

  Yields:
    dicts of `timing.row`; none where timm lacks the model.

  Raises:
    RuntimeError: if timm's logits are not ours, or its process ends.
  """
  missing = [m for m in ('torch', 'timm') if not importlib.util.find_spec(m)]
  if missing:
    print(f'(for timm in this table: pip install {" ".join(missing)})')
    return
  import timm
  if not timm.is_model(name):
    return
  dtype = str(np.dtype(model.dtype))
  want = np.asarray(run_dense(0), np.float32)
  with contextlib.ExitStack() as stack:
    functions = {}
    for label, how in (('timm, eager', 'eager'),
                       ('timm, torch.compile', 'compile')):
      run, logits = stack.enter_context(
          _worker(name, model, params, images, dtype, how))
      functions[label] = run
      worst = np.abs(logits - want).max() / want.std()
      if not worst < (1e-3 if dtype == 'float32' else 0.2):
        raise RuntimeError(f'{label} differs by {worst} standard deviations')
    times = timing.alternate({'dense': run_dense, **functions}, repeats)
  for label in functions:
    yield timing.row(name, label, len(images), 1, times[label], times['dense'],
                     1, dtype=dtype)


@contextlib.contextmanager
def _worker(name, model, params, images, dtype, how):
  """(function that lets timm run once, its logits [B, K])."""
  from adavit_jax import weights
  with tempfile.TemporaryDirectory() as directory:
    weights.save(os.path.join(directory, 'model.safetensors'), model, params)
    np.save(os.path.join(directory, 'images.npy'),
            np.asarray(images, np.float32).transpose(0, 3, 1, 2))
    command = [sys.executable, _WORKER, name, directory, dtype,
               str(timing.num_cores()), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE) as process:
      def wait_for(answer):
        for line in process.stdout:
          if line.strip() == answer:
            return
        raise RuntimeError(f'{" ".join(command)} ended with '
                           f'{process.wait()}; its error is above')

      def run(_):
        process.stdin.write('\n')
        process.stdin.flush()
        wait_for('done')

      wait_for('ready')
      yield run, np.load(os.path.join(directory, 'logits.npy'))

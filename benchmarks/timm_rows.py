"""Times the same model in timm, with the same weights, if timm can be imported.

timm runs in separate processes: within one process, idle threads of one library
take cores from the other, and memory freed by one changes how fast the other
allocates. Communication with the process takes 0.04 ms per call, which is
included in timm's time.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np

from adavit_jax import weights
import timing

_WORKER = os.path.join(os.path.dirname(__file__), 'timm_worker.py')
_DEVICES = {'cpu': 'cpu', 'gpu': 'cuda'}  # JAX's and torch's names
_LABELS = {'eager': 'timm, eager', 'compile': 'timm, torch.compile'}


def rows(name, model, params, images, run_dense, repeats):
  """Times timm's eager and compiled model in alternation with this library's.

  Args:
    name: name of the model, in this library and in timm.
    model: a `Backbone`.
    params: its parameters, not folded.
    images: [B, S, S, C], normalized.
    run_dense: this library's dense model, a function of the round.
    repeats: number of rounds.

  Yields:
    dicts of `timing.row`; none if timm does not have the model.

  Raises:
    RuntimeError: if timm's logits differ, or its process ends.
  """
  missing = [m for m in ('torch', 'timm', 'safetensors')
             if not importlib.util.find_spec(m)]
  if missing:
    print(f'(to add timm to this table: pip install {" ".join(missing)})')
    return
  if jax.default_backend() not in _DEVICES:
    print(f'(timm is not timed on a {jax.default_backend()})')
    return
  dtype = str(np.dtype(model.dtype))
  want = np.asarray(run_dense(0), np.float32)
  with contextlib.ExitStack() as stack:
    functions = {}
    with tempfile.TemporaryDirectory() as directory:
      weights.save(os.path.join(directory, 'model.safetensors'), model, params)
      np.save(os.path.join(directory, 'images.npy'),
              np.asarray(images, np.float32).transpose(0, 3, 1, 2))
      for variant, label in _LABELS.items():
        ask = stack.enter_context(
            _worker(name, model.num_classes, directory, dtype, variant))
        if ask() == 'unknown':
          return
        logits = np.load(os.path.join(directory, f'{variant}.npy'))
        worst = np.abs(logits - want).max() / want.std()
        if not worst < (1e-3 if dtype == 'float32' else 0.2):
          raise RuntimeError(f'{label} differs by {worst} standard deviations')
        functions[label] = lambda _, ask=ask: ask('\n')
    times = timing.alternate({'dense': run_dense, **functions}, repeats)
  for label in functions:
    yield timing.row(name, label, len(images), 1, times[label], times['dense'],
                     1, dtype=dtype)


@contextlib.contextmanager
def _worker(name, classes, directory, dtype, variant):
  """Starts timm; yields a function that sends text and returns the answer."""
  command = [sys.executable, _WORKER, name, str(classes), directory, dtype,
             _DEVICES[jax.default_backend()], str(timing.num_cores()), variant]
  with subprocess.Popen(command, stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE) as process:

    def ask(text=''):
      with contextlib.suppress(BrokenPipeError):  # the answer is then empty
        os.write(process.stdin.fileno(), text.encode())
      answer = process.stdout.readline().decode().strip()
      if not answer:
        raise RuntimeError(f'{" ".join(command)} ended with {process.wait()}; '
                           f'see its output above')
      return answer

    try:
      yield ask
    finally:
      process.kill()

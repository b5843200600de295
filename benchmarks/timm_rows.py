"""The same ViT in timm, with the same weights, where it can be imported."""

import importlib.util
import os
import tempfile

import numpy as np

import timing


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
  """
  missing = [m for m in ('torch', 'timm') if not importlib.util.find_spec(m)]
  if missing:
    print(f'(for timm in this table: pip install {" ".join(missing)})')
    return
  import timm
  import torch
  import safetensors.torch
  from adavit_jax import weights
  if not timm.is_model(name):
    return
  torch.set_num_threads(timing.num_cores())
  # JAX's default there; without effect on a CPU.
  torch.set_float32_matmul_precision('high')
  # Else the second batch size counts as dynamic shapes, and is slower.
  torch._dynamo.reset()  # pylint: disable=protected-access
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  eager = timm.create_model(name, num_classes=model.num_classes).eval()
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, 'model.safetensors')
    weights.save(path, model, params)
    eager.load_state_dict(safetensors.torch.load_file(path))
  eager = eager.to(device, getattr(torch, str(np.dtype(model.dtype))))
  x = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())
  x = x.to(device, next(eager.parameters()).dtype)

  def runner(module):
    def run(_):
      with torch.inference_mode():
        out = module(x)
      if device == 'cuda':
        torch.cuda.synchronize()
      return out
    return run

  functions = {'timm, eager': runner(eager),
               'timm, torch.compile': runner(
                   torch.compile(eager, dynamic=False))}
  want = np.asarray(run_dense(0))
  for label, run in functions.items():
    worst = np.abs(run(0).float().cpu().numpy() - want).max() / want.std()
    if not worst < (1e-3 if model.dtype == np.float32 else 0.2):
      raise RuntimeError(f'{label} differs by {worst} standard deviations')
  times = timing.alternate({'dense': run_dense, **functions}, repeats)
  for label in functions:
    yield timing.row(name, label, len(images), 1, times[label], times['dense'],
                     1, dtype=str(np.dtype(model.dtype)))

"""Runs timm's model in a separate process, which `timm_rows` starts.

  python timm_worker.py NAME K DIRECTORY DTYPE DEVICE CORES eager|compile

K is the number of classes. BatchNorm is folded into the layers, as in this
library at inference. It reads model.safetensors and images.npy [B, C, S, S]
from DIRECTORY, writes the logits [B, K] there as eager.npy or compile.npy, and
prints `ready`, or `unknown` if timm does not have the model. Then it runs the
model once for each line of its input and answers `done`.
"""

import os
import sys

import numpy as np
import safetensors.torch
import timm
import timm.utils
import torch


def main(name, classes, directory, dtype, device, cores, variant):
  # Output of the libraries goes to stderr; stdout carries the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  answer = lambda word: print(word, file=answers, flush=True)
  if not timm.is_model(name):
    answer('unknown')
    return

  torch.set_num_threads(int(cores))
  # JAX's default on a GPU; it has no effect on a CPU.
  torch.set_float32_matmul_precision('high')
  weights = safetensors.torch.load_file(
      os.path.join(directory, 'model.safetensors'))
  model = timm.create_model(name, num_classes=int(classes)).eval()
  model.load_state_dict(weights)
  del weights
  model = timm.utils.reparameterize_model(model)
  model = model.to(device, getattr(torch, dtype))
  if variant == 'compile':
    model = torch.compile(model, dynamic=False)
  images = torch.from_numpy(np.load(os.path.join(directory, 'images.npy')))
  images = images.to(device, getattr(torch, dtype))

  def run():
    with torch.inference_mode():
      logits = model(images)
    if device == 'cuda':
      torch.cuda.synchronize()
    return logits

  logits = run().float().cpu().numpy()
  np.save(os.path.join(directory, f'{variant}.npy'), logits)
  answer('ready')
  for _ in sys.stdin:
    run()
    answer('done')


if __name__ == '__main__':
  main(*sys.argv[1:])

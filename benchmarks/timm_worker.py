"""timm's ViT in a process of its own; `timm_rows` starts it.

  python timm_worker.py NAME DIRECTORY DTYPE CORES eager|compile

reads model.safetensors and images.npy [B, C, S, S] from DIRECTORY, writes
logits.npy [B, K] there and prints `ready`; then it runs the model once for each
line on its input and answers each with a line.
"""

import os
import sys

import numpy as np
import safetensors.torch
import timm
import torch


def main(name, directory, dtype, cores, how):
  torch.set_num_threads(int(cores))
  # JAX's default on a GPU; without effect on a CPU.
  torch.set_float32_matmul_precision('high')
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  weights = safetensors.torch.load_file(
      os.path.join(directory, 'model.safetensors'))
  model = timm.create_model(
      name, num_classes=len(weights['head.bias'])).eval()
  model.load_state_dict(weights)
  model = model.to(device, getattr(torch, dtype))
  if how == 'compile':
    model = torch.compile(model, dynamic=False)
  images = torch.from_numpy(np.load(os.path.join(directory, 'images.npy')))
  images = images.to(device, getattr(torch, dtype))

  def run():
    with torch.inference_mode():
      logits = model(images)
    if device == 'cuda':
      torch.cuda.synchronize()
    return logits

  np.save(os.path.join(directory, 'logits.npy'), run().float().cpu().numpy())
  print('ready', flush=True)
  for _ in sys.stdin:
    run()
    print('done', flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])

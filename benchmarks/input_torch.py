"""torch's DataLoader, which `input` starts with a Python that has torch.

  python input_torch.py --one='torch workers' --prepared=DIR --workers=2
"""

import argparse
import contextlib
import json
import os

import cpu_time
import torch


def torchvision_transforms():
  """Imports torchvision, whose compiled part needs CUDA to load."""
  library = torch.library.Library('torchvision', 'DEF')
  with contextlib.suppress(RuntimeError):
    for name in ('nms', 'qnms'):
      library.define(
          f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  import torchvision
  return library, torchvision


def main():
  parser = argparse.ArgumentParser()
  for flag in ('one', 'prepared', 'repeats'):
    parser.add_argument(f'--{flag}')
  for flag, default in (('batch', 64), ('batches', 16), ('workers', 2)):
    parser.add_argument(f'--{flag}', type=int, default=default)
  args = parser.parse_args()
  library, torchvision = torchvision_transforms()
  transforms = torchvision.transforms
  dataset = torchvision.datasets.ImageFolder(
      os.path.join(args.prepared, 'folder', 'train'),
      transforms.Compose([
          transforms.RandomResizedCrop(
              224, interpolation=transforms.InterpolationMode.BICUBIC),
          transforms.PILToTensor()]))
  # As many images as are asked for, in one pass.
  need = (args.batches + 40) * args.batch
  dataset = torch.utils.data.ConcatDataset(
      [dataset] * (need // len(dataset) + 1))
  batches = iter(torch.utils.data.DataLoader(
      dataset, args.batch, shuffle=True, num_workers=args.workers))
  print(json.dumps(cpu_time.timed(batches, args.batch, args.batches)))
  del library  # is unregistered when it goes


if __name__ == '__main__':
  main()

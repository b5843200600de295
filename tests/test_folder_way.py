"""From a file of weights to programs: LeViT takes the way of docs/weights.md.

Each command of the way runs as a process of its own, as a user starts it.
"""

import json
import pathlib
import re

from adavit_jax import weights
import efficient
import numpy as np
from PIL import Image
import processes
import pytest

SIZE, CLASSES = 12, ('ant', 'bee')
MODEL = dict(image_size=SIZE, patch_size=4, widths='(8,6)', depths='(1,2)',
             heads='(2,4)', key_dim=4)
PHASES = ('dense', 'warm_start', 'policy', 'joint', 'last_exit',
          'classifier_wise')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A file with timm's names and another head, and images of two classes."""
  root = tmp_path_factory.mktemp('way')
  model = efficient.levit(image_size=SIZE, channels=3, num_classes=7)
  weights.save(root / 'levit.safetensors', model, efficient.params(model))
  assert 'head_dist.bn.running_var' in weights.read(
      root / 'levit.safetensors').tensors
  rng = np.random.default_rng(0)
  for split, num in dict(train=20, val=4).items():
    for i, name in enumerate(CLASSES):
      (root / 'images' / split / name).mkdir(parents=True)
      for j in range(num):
        pixels = rng.integers(100 * i, 100 * i + 150, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(
            root / 'images' / split / name / f'{j}.png')
  return root


def _run(root, program, *args):
  process = processes.Process(root, processes.script, program, *args)
  assert process.wait() == 0, process.err
  return process.out


def _train(root, workdir, *args):
  short = [f'--config.{phase}.{field}' for phase in PHASES
           for field in ('steps=2', 'batch_size=8')]
  _run(root, 'train.py', '--config=configs/folder_policy.py',
       f'--workdir={workdir}', f'--config.data.data_dir={root}/images',
       f'--config.data.cache_dir={root}/cache',
       f'--config.init.weights={root}/levit.safetensors',
       '--config.model.name=levit_128s', f'--config.data.image_size={SIZE}',
       *(f'--config.model.{k}={v}' for k, v in MODEL.items()), *short,
       '--config.num_search=8', '--config.eval_batch_size=8',
       '--config.data.holdout=0.2', '--config.dtype=float32', *args)


@pytest.mark.nightly
@pytest.mark.parametrize('kind', ['exits', 'policy'])
def test_from_weights_to_a_program(folder, kind):
  workdir, out = folder / kind, folder / f'{kind}_out'
  if kind == 'exits':
    _train(folder, workdir, "--config.phases=('last_exit','classifier_wise')",
           "--config.model.exits=((1,'mlp'),(2,'cnn_add'))")
    mode, remark = 'stages', 'exit 2 of 0 to 2'
  else:
    # So small a model has little to drop for what a policy costs.
    _train(folder, workdir, '--config.model.num_fixed=0',
           '--config.nets.hidden=0', '--config.mac_target=0.9')
    mode, remark = 'cond', r'\d+% of the adaptive layers ran'
  _run(folder, 'eval.py', f'--workdir={workdir}', '--nostatic')
  report = json.loads(pathlib.Path(workdir, 'report.json').read_text())
  assert {'exits': 'exits', 'policy': 'adaptive'}[kind] in report
  _run(folder, 'export.py', f'--workdir={workdir}', f'--mode={mode}',
       f'--output={out}', '--platforms=cpu')
  files = sorted(map(str, folder.glob('images/val/*/0.png')))
  lines = _run(folder, 'examples/run_exported.py', str(out), *files).split('\n')
  for file, line in zip(files, lines):
    assert re.match(rf'{re.escape(file)}: (ant|bee) \(.*\), {remark}', line)

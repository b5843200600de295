"""Configs that cannot work are refused before anything is computed."""

import dataclasses
import subprocess

from adavit_jax import data
from adavit_jax.train import loop
import numpy as np
import pytest
import tiny


@pytest.mark.parametrize('flag, message', [
    ('--config.dense.stps=1', "unknown field of the config: 'stps'. Did you "
     'mean "steps"'),
    ('--config.dense.weights[3]=1', 'unknown field of the config: '),
    ('--config=configs/none.py', "such file or directory: 'configs/none.py'"),
    ('--config=configs/cifar10_policy.py:gpu',
     "error: ValueError: unknown variant 'gpu'; known"),
    # Given twice: absl would join tuples; the last one counts.
    ("--config.phases=('dens',) --config.phases ('static',)",
     "phase 'static' starts from a trained model"),
    ('--workdir=/dev/null/run', 'Not a directory')])
def test_mistaken_flags_end_in_one_sentence(flag, message, tmp_path):
  flags = ['--config=configs/digits_policy.py', f'--workdir={tmp_path}/run']
  process = subprocess.run(
      **tiny.command('train.py', *flags, *flag.split()), timeout=120)
  assert process.returncode != 0
  last = process.stderr.splitlines()[-1]
  assert last.startswith('error: ') and message in last
  assert 'Traceback' not in process.stderr
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('fields, message', [
    (dict(phases=('dens',)), "config.phases has 'dens'; did you mean 'dense'"),
    (dict(phases=(1,)), 'config.phases has 1; known'),
    (dict(phases=()), 'config.phases is empty; give some of'),
    ({'joint.batch_size': 12}, 'joint.batch_size=12 must be a positive '
     'multiple of the 8 devices; set joint.batch_size to 8 or 16'),
    (dict(eval_batch_size=10), 'eval_batch_size=10 must be'),
    ({'data.image_size': 16}, 'data.image_size=16 but the model '
     "'vit_digits_patch2_8' takes 8; set --config.model.image_size=16"),
    (dict(phases=('policy', 'joint')), "phase 'policy' starts from a trained "
     'model; set --config.init.workdir=DIR or --config.init.weights=FILE'),
    ({'init.workdir': 'a', 'init.weights': 'b'}, "init.workdir='a' and "
     "init.weights='b': parameters come from one of the two"),
    ({'init.weights': 'nowhere.npz'}, 'nowhere.npz does not exist'),
    ({'data.mean': (0.5, 0.5, 0.5)}, r'data.mean=\(0.5, 0.5, 0.5\) and .* one '
     'value for each of the 1 channels'),
    ({'dense.steps': 0}, 'dense.steps=0 must be positive'),
    ({'dense.ema': 1.}, r'dense.ema=1.0 must be in \[0, 1\)'),
    ({'policy.samples': 1}, 'policy.samples=1: the leave_one_out baseline'),
    ({'policy.bound': 0.5}, r'policy.bound=0.5 must be in \(0.5, 1\]'),
    ({'policy.optimizer': 'muon'}, "policy.optimizer='muon' is for encoders"),
    ({'joint.reward': 'mac'}, "joint.reward='mac'; known"),
    ({'policy.baseline': 'mean'}, "policy.baseline='mean'; known"),
    ({'nets.tokens': 'cls'}, "nets.tokens='cls'; known"),
    ({'nets.threshold': 1.}, 'nets.threshold=1.0 must be'),
    ({'joint.distill': 3.}, 'joint.distill=3.0 must be in'),
    ({'joint.distill': 1., 'model.distillation': True},
     'joint.distill=1 teaches the distillation head alone'),
    ({'static.temperature': 0.}, 'static.temperature=0.0 must be positive'),
    (dict(mac_target=55.), r'mac_target=55.0 must be in \(0, 1\]'),
    ({'static.policy': 'random'}, "static.policy='random'; known"),
    ({'warm_start.masks': 0}, 'warm_start.masks=0 must be at least 1'),
    ({'policy.price': 0.}, r'policy.price=0.0 must be in \[0.001, 20.0\]'),
    ({'joint.price': float('nan')}, 'joint.price=nan must be in'),
    ({'nets.bias': float('nan')}, 'nets.bias=nan must be a finite number'),
    ({'model.unroll': 0}, 'model.unroll=0 must be at least 1'),
    ({'policy.curriculum': -1.}, r'policy.curriculum=-1.0 must be in \[0, 1\]'),
    ({'joint.sampled': 30.}, r'joint.sampled=30.0 must be in \[0, 1\]: it is'),
    ({'static.survival': 3.}, 'static.survival=3.0 must be in'),
    ({'nets.hidden': -5}, 'nets.hidden=-5 must not be negative'),
    ({'seed': -1}, 'seed=-1 must not be negative'),
    ({'dtype': 'float16'}, "dtype='float16'; known"),
    ({'model.num_heads': 3}, 'num_heads=3 does not divide width=16'),
])
def test_wrong_configs(tmp_path, fields, message):
  config = tiny.get_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    loop.Trainer(config, str(tmp_path / 'run'), dataset=tiny.dataset())
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('fields', [
    {'joint.batch_size': 48},  # of 40 images
    {'policy.warmup': 1.5},
    {'phases': ('dense', 'static'), 'static.policy': 'mask',
     'static.keep': '1'},
    {'phases': ('dense', 'static'), 'static.number': 6},
    {'data.label_smoothing': 2.},
])
def test_no_phase_is_trained_before_a_later_one_fails(tmp_path, fields):
  config = tiny.get_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError):
    loop.Trainer(config, str(tmp_path), dataset=tiny.dataset())


def test_warm_start_without_held_out_images_is_refused(tmp_path):
  dataset = tiny.dataset()
  empty = data.ArraySplit(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0))
  with pytest.raises(ValueError, match='holdout'):
    loop.Trainer(tiny.get_config(), str(tmp_path),
                 dataset=dataclasses.replace(dataset, holdout=empty))

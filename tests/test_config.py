"""Configs that cannot work are refused before anything is computed."""

import dataclasses
import re

from adavit_jax import data
from adavit_jax.runs import loop
import numpy as np
import processes
import pytest
import tiny


@pytest.mark.parametrize('command, named', [
    ('train.py --config.dense.stps=1', "'stps'.*steps"),
    ('train.py --config.dense.weights[3]=1', 'weights'),
    ('train.py --config=configs/none.py', "'configs/none.py'"),
    ('train.py --config=README.md', 'README.md.*line [0-9]+'),
    ('train.py --distributed', '^--distributed'),
    ('train.py --config=configs/cifar10_policy.py:gpu', "'gpu'"),
    # Given twice: absl would join tuples; the last one counts.
    ("train.py --config.phases=('dens',) --config.phases ('static',)",
     "'static'"),
    ('train.py --workdir=/dev/null/run', '/dev/null/run'),
    ('train.py --config=tests/odd_config.py', '--config.*3'),
    ('export.py --threshold=0.3 --mode=dense',
     '^--threshold=0.3.*--mode=dense'),
    pytest.param('export.py --mode=cond --actions=4', '--actions=4',
                 marks=pytest.mark.nightly),
    pytest.param('export.py --mode=dense --format=onnx --platforms=tpu',
                 '--platforms=tpu', marks=pytest.mark.nightly),
    ('export.py --threshold=0.3 --mode=static',
     '^--threshold=0.3.*--mode=static'),
    pytest.param('export.py --workdir=digits-policy --mode=cond --promise',
                 '^--promise.*digits-policy', marks=pytest.mark.nightly)])
def test_mistaken_flags_end_in_one_sentence(command, named, tmp_path):
  program, *flags = command.split()
  own = {'train.py': '--config=configs/digits_policy.py',
         'export.py': f'--output={tmp_path}/a'}[program]
  process = processes.Process(
      tmp_path, processes.script, program, own, f'--workdir={tmp_path}/run',
      *flags)
  assert process.wait() not in (0, None)
  error, last = process.err.splitlines()[-1].split(' ', 1)
  assert error == 'error:' and re.search(named, last), last
  assert 'Traceback' not in process.err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('fields, message', [
    (dict(phases=('dens',)), "config.phases.*'dens'.*'dense'"),
    (dict(phases=(1,)), r'config.phases.*\b1\b'),
    (dict(phases=()), 'config.phases'),
    (dict(phases=('dense', 'dense')), 'config.phases'),
    ({'joint.batch_size': 12}, r'joint.batch_size=12 .*\b8 .*\b16'),
    (dict(eval_batch_size=10), 'eval_batch_size=10'),
    ({'data.image_size': 16}, 'data.image_size=16 .* '
     '--config.model.image_size=16'),
    (dict(phases=('policy', 'joint')),
     "'policy' .* --config.init.workdir=DIR or --config.init.weights=FILE"),
    ({'init.workdir': 'a', 'init.weights': 'b'},
     "init.workdir='a' and init.weights='b'"),
    ({'init.phase': 'dense'}, "init.phase='dense'.*init.workdir"),
    ({'init.weights': 'nowhere.npz'}, 'nowhere.npz'),
    ({'data.repeats': 3, 'dense.batch_size': 128},
     r'dense.batch_size=128 with data.repeats=3 takes 44 .* 40\b'),
    ({'data.repeats': 0}, 'data.repeats=0'),
    ({'data.mean': (0.5, 0.5, 0.5)}, r'data.mean=\(0.5, 0.5, 0.5\)'),
    ({'dense.steps': 0}, 'dense.steps=0'),
    ({'dense.ema': 1.}, 'dense.ema=1.0'),
    ({'policy.samples': 1}, 'policy.samples=1'),
    ({'policy.bound': 1.5}, 'policy.bound=1.5'),
    ({'policy.optimizer': 'muon'}, "policy.optimizer='muon'"),
    ({'joint.reward': 'mac'}, "joint.reward='mac'"),
    ({'policy.baseline': 'mean'}, "policy.baseline='mean'"),
    ({'nets.tokens': 'cls'}, "nets.tokens='cls'"),
    ({'nets.threshold': 1.}, 'nets.threshold=1.0'),
    ({'joint.distill': 3.}, 'joint.distill=3.0'),
    ({'joint.distill': 1., 'model.distillation': True}, 'joint.distill=1'),
    ({'static.temperature': 0.}, 'static.temperature=0.0'),
    (dict(mac_target=55.), 'mac_target=55.0'),
    ({'phases': ('dense', 'static'), 'static.policy': 'random'},
     "static.policy='random'"),
    ({'phases': ('dense', 'static'), 'static.number': 6}, 'static.number=6'),
    ({'phases': ('dense', 'static'), 'static.policy': 'mask'},
     "static.keep=''"),
    ({'phases': ('dense', 'static'), 'static.which': 'middle'},
     "static.which='middle'"),
    ({'warm_start.shift_rate': 2.}, 'warm_start.shift_rate=2'),
    ({'nets.decide': 'both'}, 'nets.decide=.both'),
    ({'nets.decide': 'value', 'phases': ('dense', 'policy')},
     "nets.decide=.value.*'policy'"),
    ({'nets.decide': 'value', 'phases': ('dense', 'joint', 'warm_start')},
     "nets.decide=.value.*warm_start.*'joint'"),
    ({'nets.decide': 'value', 'phases': ('dense', 'joint'),
      'init.workdir': 'a'}, "nets.decide=.value.*warm_start.*'joint'"),
    ({'policy.bound': 0.5}, 'policy.bound=0.5'),
    ({'policy.price': 0.}, r'policy.price=0.0 .*0.001, 20.0'),
    ({'joint.price': float('nan')}, 'joint.price=nan'),
    ({'nets.bias': float('nan')}, 'nets.bias=nan'),
    ({'model.unroll': 0}, 'model.unroll=0'),
    ({'policy.curriculum': -1.}, 'policy.curriculum=-1.0'),
    ({'joint.sampled': 30.}, 'joint.sampled=30.0'),
    ({'static.survival': 3.}, 'static.survival=3.0'),
    ({'nets.hidden': -5}, 'nets.hidden=-5'),
    ({'nets.conv': -5}, 'nets.conv=-5'),
    ({'seed': -1}, 'seed=-1'),
    ({'dense.learning_rate': float('inf')}, 'dense.learning_rate=inf'),
    ({'dense.steps': 10**30}, f'dense.steps={10**30}'),
    ({'eval_batch_size': 10**12}, f'eval_batch_size={10**12}'),
    ({'seed': 2**64}, f'^seed={2**64}'),
    ({'data.seed': 2**32}, f'^data.seed={2**32}'),
    ({'data.crop_padding': 9}, 'crop_padding=9.*image_size=8'),
    ({'data.policy_resized_crop': 1.5}, 'policy_resized_crop=1.5'),
    ({'data.policy_crop_padding': 100_000}, 'policy_crop_padding=100000'),
    ({'dtype': 'float16'}, "dtype='float16'"),
    ({'model.num_heads': 3}, 'num_heads=3'),
    ({'model.depth': 10**9}, f'depth={10**9}'),
    ({'model.module': '..x'}, "model.module='..x'"),
    ({'policy.samples': 10**9}, f'policy.samples={10**9}'),
    ({'dense.weight_decay': float('inf')}, 'dense.weight_decay=inf'),
    ({'dense.weight_decay': -1.}, 'dense.weight_decay=-1'),
    ({'joint.warmup': 1.}, '^joint.warmup=1'),
    ({'joint.warmup': -0.1}, 'joint.warmup=-0.1'),
    ({'policy.end_lr_factor': 2.}, 'policy.end_lr_factor=2'),
    ({'dense.clip_norm': -1.}, 'dense.clip_norm=-1'),
    ({'dense.b2': 1.}, 'dense.b2=1'),
    ({'warm_start.learning_rate': 0.}, 'warm_start.learning_rate=0.0'),
    ({'dense.optimizer': 'sgd'}, 'dense.optimizer=sgd'),
    ({'data.crop_padding': 1, 'data.resized_crop': 0.5},
     '^config.data.crop_padding=1.*resized_crop=0.5'),
    ({'data.crop_padding': 1, 'data.policy_resized_crop': 0.5},
     "'warm_start'.*crop_padding=1.*resized_crop=0.5"),
    ({'dense.nested': float('inf')}, 'dense.nested=inf'),
    ({'dense.steps': None}, 'dense.steps=None.*1000'),
    ({'data.scenes.kind': None}, 'data.scenes.kind=None'),
    ({'model.num_fixed': 4}, 'num_fixed=4'),
])
def test_wrong_configs(tmp_path, fields, message):
  config = tiny.get_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    loop.Trainer(config, str(tmp_path / 'run'), dataset=tiny.dataset())
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('fields, message', [
    (dict(data_dir='/nowhere'), "data_dir='/nowhere'.*'digits'"),
    (dict(image_size=100_000), 'image_size=100000'),
    (dict(load_size=100_000), 'load_size=100000'),
    (dict(name='tfds:../x'), "name='tfds:../x'.* Give tfds:NAME"),
    (dict(mean=('a',)), r"data.mean=\('a',\)"),
    ({'name': 'digit_scenes', 'scenes.num_train': 10**12},
     f'scenes.num_train={10**12}'),
    ({'name': 'rotated_digits', 'rotations.num_test': 1},
     'rotations.num_test=1 '),
    (dict(name='digit_scenes', cache_dir='setup.py/cache'),
     "cache_dir='setup.py/cache'.*setup.py is a file"),
])
def test_what_the_built_in_data_cannot_be(fields, message, monkeypatch):
  monkeypatch.chdir(tiny.ROOT)
  config = data.default_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    data.load(config, seed=0)


@pytest.mark.parametrize('fields', [
    {'joint.batch_size': 48},  # of 40 images
    {'policy.warmup': 1.5},
    {'phases': ('dense', 'static'), 'static.policy': 'mask',
     'static.keep': '1'},
    {'phases': ('dense', 'static'), 'static.number': 6},
    {'data.label_smoothing': 2.},
    {'joint.batch_size': 80, 'data.repeats': 2},  # not repeated there
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

"""Uses the installed package outside of the checkout: `use_wheel.py WORKDIR`.

WORKDIR is a run on digits.
"""

import importlib.metadata
import sys

import jax
import numpy as np

import adavit_jax

if 'site-packages' not in adavit_jax.__file__:
  sys.exit(f'{adavit_jax.__file__} is not the installed package')
print('adavit_jax', importlib.metadata.version('adavit_jax'))

model = adavit_jax.create('vit_cifar_patch4_32')
params = adavit_jax.init_params(model, jax.random.key(0))
images = np.zeros((2, 32, 32, 3), np.float32)
assert adavit_jax.forward(model, params, images).total.shape == (2, 10)
print(model)

clf = adavit_jax.load(sys.argv[1])
print(clf)
prediction = clf(np.zeros((3, 8, 8, 1), np.uint8))
assert prediction.labels.shape == (3,)
print(prediction)

assert 'digits-policy' in adavit_jax.pretrained()
for name in adavit_jax.pretrained():
  print(name, adavit_jax.load(name))

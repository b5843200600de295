"""Devices of a TPU slice to compile for, without a TPU.

Import it before jax, so that JAX uses the CPU backend and libtpu does not look
for a TPU.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')

import jax
from jax.experimental import topologies


def devices(name):
  """Returns the devices of a TPU topology, a list.

  Args:
    name: 'KIND:SHAPE', e.g. 'v5e:4x4'.

  Raises:
    ValueError: if libtpu is not installed, or the topology is unknown.
  """
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=name).devices
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
    raise ValueError(
        f'--topology={name} is not available ({error}); give one such as '
        f"v5e:4x4. libtpu is installed by pip install -e '.[tpu]' and serves "
        f'one process at a time') from error

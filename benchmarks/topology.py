"""The devices of a TPU slice that is not there, to compile for.

Import it before jax: its own backend is then the CPU, and libtpu does not look
for the machine's TPU.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')

import jax
from jax.experimental import topologies


def devices(name):
  """The devices of a TPU topology, a list.

  Args:
    name: 'KIND:SHAPE', e.g. 'v5e:4x4'.

  Raises:
    ValueError: there is no libtpu, or no such topology.
  """
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=name).devices
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
    raise ValueError(
        f'--topology={name} cannot be compiled for ({error}); give one such as '
        f"v5e:4x4. libtpu comes with pip install -e '.[tpu]' and serves one "
        f'process at a time') from error

"""What a program multiplies, read from the program."""

import math


def macs(jaxpr):
  """MACs of the matrix products and convolutions of a `Jaxpr`, exactly.

  Multiplications with a convolution's zero padding count, as in `cost`. No loop
  or branch may depend on data, since the number is of one run.
  """
  total = 0
  for eqn in jaxpr.eqns:
    out = math.prod(eqn.outvars[0].aval.shape)
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += out * math.prod(shape[i] for i in contracted)
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      features = params['dimension_numbers'].rhs_spec[0]
      total += out * math.prod(kernel) // kernel[features]
    else:
      assert name not in ('while', 'cond')
      times = params['length'] if name == 'scan' else 1
      total += times * sum(map(macs, _inner(params)))
  return total


def _inner(params):
  # jax 0.7 has no jax.extend.core.jaxprs_in_params.
  for value in params.values():
    for program in value if isinstance(value, tuple) else (value,):
      if hasattr(program, 'eqns'):
        yield program

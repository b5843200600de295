"""Counts the floating-point operations of a traced function.

XLA's own count takes the body of a loop once, so that it misses all but one of
the encoders that a scan runs.
"""

import math

from jax.extend import core


def of_jaxpr(jaxpr) -> int:
  """Returns the FLOPs of matrix products and convolutions, 2 x MACs.

  Recomputation in the backward pass counts. A loop that turns as often as the
  data need counts as one turn, a conditional as its most costly branch.

  Args:
    jaxpr: Jaxpr or ClosedJaxpr.
  """
  return sum(map(_of_equation, getattr(jaxpr, 'jaxpr', jaxpr).eqns))


def _of_equation(eqn):
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(
        shape[i] for i in contracted)
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    _, channels, *window = params['dimension_numbers'].rhs_spec
    products = math.prod(kernel[i] for i in (channels, *window))
    # The zeros between dilated inputs are not multiplied.
    return 2 * math.prod(eqn.outvars[0].aval.shape) * products // math.prod(
        params['lhs_dilation'])
  inner = [of_jaxpr(j) for value in params.values()
           for j in (value if isinstance(value, (tuple, list)) else [value])
           if isinstance(j, (core.Jaxpr, core.ClosedJaxpr))]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'cond':
    return max(inner)
  return sum(inner)

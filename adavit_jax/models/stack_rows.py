"""Runs over the encoders of a stack, with `Stack.each` and `out`.

These are activations that belong to one encoder. A run calls `split` before it,
`enter` and `leave` around each encoder, and `join` after it.
"""

import jax
import jax.numpy as jnp


def row(tree, i):
  """Returns row `i` of every leaf [R, ...].

  As `leaf[i]`, which takes JAX ten times as long to trace where `i` is traced.
  """
  return jax.tree.map(
      lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


def split(stack, x):
  """Separates the rows of the encoders from the other activations.

  Args:
    stack: `Stack` of R encoders.
    x: activations before it.

  Returns:
    (activations of all encoders, {key: rows [R, B, ...]} for the keys `each`).
  """
  if not (stack.each or stack.out):
    return x, {}
  stop = stack.start + stack.length
  rows = {key: jnp.moveaxis(x[key][:, stack.start:stop], 1, 0)
          for key in stack.each}
  return {key: y for key, y in x.items()
          if key not in stack.each and key not in stack.out}, rows


def scan(step, x, layers, **options):
  """Runs a step for each encoder.

  Args:
    step: (activations, inputs of an encoder) -> (activations, outputs). With
      one encoder, it may change the shapes of the activations.
    x: activations.
    layers: inputs of R encoders, leaves [R, ...].
    **options: of `jax.lax.scan`.

  Returns:
    (activations, outputs [R, ...]).
  """
  if len(jax.tree.leaves(layers)[0]) > 1:
    return jax.lax.scan(step, x, layers, **options)
  x, outputs = step(x, jax.tree.map(lambda leaf: leaf[0], layers))
  return x, jax.tree.map(lambda leaf: leaf[None], outputs)


def enter(stack, x, row):
  """Adds the arrays of one encoder to the activations of all encoders.

  Args:
    stack: `Stack`.
    x: activations from `split` or `leave`.
    row: {key: [B, ...]}, one row of each of the rows from `split`.
  """
  if not (stack.each or stack.out):
    return x
  size = jax.tree.leaves(x)[0].shape[0]
  zeros = {key: jnp.zeros((size, *like.shape), like.dtype)
           for key, like in stack.out.items()}
  return {**x, **row, **zeros}


def leave(stack, x):
  """The inverse of `enter`: (activations of all encoders, {key: output})."""
  if not (stack.each or stack.out):
    return x, {}
  outputs = {key: x[key] for key in stack.out}
  return {key: y for key, y in x.items()
          if key not in stack.each and key not in stack.out}, outputs


def join(stack, before, x, outputs):
  """Returns the activations after a stack.

  Args:
    stack: `Stack` of R encoders.
    before: activations before it. If these include outputs, the stack continues
      one that another stage began, and its outputs are appended.
    x: activations from the last `leave`.
    outputs: {key: [R, B, ...]}, the stacked outputs of `leave`.
  """
  if not (stack.each or stack.out):
    return x
  rows = {key: before[key] for key in stack.each}
  for key, y in outputs.items():
    y = jnp.moveaxis(y, 0, 1)
    rows[key] = jnp.concatenate([before[key], y], 1) if key in before else y
  return {**x, **rows}

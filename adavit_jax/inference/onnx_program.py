"""Programs in ONNX, for runtimes without JAX, by the library jax2onnx."""

import logging

import jax


def convert(function, args, names):
  """Traces a function and converts it to ONNX.

  Args:
    function: function of arrays or pytrees of arrays.
    args: its arguments as `jax.ShapeDtypeStruct`s; a batch axis of any size is
      an axis of a symbolic size.
    names: (name of each argument, name of each result). A name that ends with
      '_' is of a pytree, whose leaves are numbered: carry_0, carry_1, ...

  Returns:
    bytes, a serialized ONNX model. It takes and returns the leaves of the
    pytrees in their order; arguments that the function does not use are left
    out.

  Raises:
    ValueError: if jax2onnx is not installed, or cannot convert the function.
  """
  try:
    import jax2onnx  # an extra, and slow to import
  except ImportError as e:
    raise ValueError("format='onnx' needs jax2onnx; install the extra: "
                     "pip install -e '.[onnx]'") from e
  # It warns of each constant whose type it leaves out of the file.
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  leaves, tree = jax.tree.flatten(args)
  result = jax.eval_shape(function, *args)

  def flat(*leaves):
    return tuple(jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves))))

  inputs, outputs = (
      [name for whole, part in zip(kinds, parts)
       for name in _leaf_names(whole, part)]
      for kinds, parts in zip(names, (args, result)))
  try:
    model = jax2onnx.to_onnx(
        flat, leaves, input_names=inputs, output_names=outputs)
  except Exception as e:  # of any type, by what the library does not know
    raise ValueError(f'jax2onnx cannot convert this model '
                     f'({type(e).__name__}: {e})') from e
  return model.SerializeToString()


def _leaf_names(name, tree):
  if not name.endswith('_'):
    return [name]
  return [f'{name}{i}' for i in range(len(jax.tree.leaves(tree)))]

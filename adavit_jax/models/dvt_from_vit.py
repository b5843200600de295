"""Starts the first transformer of a DVT from a trained ViT."""

import jax
import jax.numpy as jnp


def with_vit(params, vit_params):
  """Starts the first transformer of a DVT from a trained ViT.

  The ViT has the stem 'patch' or 'conv', the width, depth, heads and classes of
  the DVT, and patches of the size that makes its first grid.

  Args:
    params: groups of the DVT.
    vit_params: groups of the ViT.

  Returns:
    The groups of the DVT with the ViT's parameters in the first transformer;
    `weights.save` makes a file of them that `config.init.weights` reads.

  Raises:
    ValueError: if a parameter of the ViT is missing or does not fit.
  """
  own, given = params['backbone'], vit_params['backbone']
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  names = {name.removesuffix('_0') for name in own if name.endswith('_0')}
  wrong = [name for name in names.union(given)
           if shapes(given.get(name)) != shapes(own.get(f'{name}_0'))]
  if wrong:
    raise ValueError(f'vit_params: {sorted(wrong)} do not fit the first '
                     f'transformer of the DVT')
  return {**params, 'backbone': {
      **own, **{f'{name}_0': leaf for name, leaf in given.items()}}}

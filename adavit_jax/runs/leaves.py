"""Shapes and dtypes of a checkpoint's arrays, and how they fit a state."""

import jax


def describe(tree):
  """Returns {path: 'dtype[shape]'}, for arrays or abstract leaves."""
  keystr = jax.tree_util.keystr
  return {keystr(path, simple=True, separator='/'):
          f'{x.dtype}{list(x.shape)}'
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def check(saved, wanted, partial, where, shown=5):
  """Checks that saved arrays are those of a state.

  Args:
    saved: what `describe` returns for the saved state.
    wanted: the same for the state that is wanted.
    partial: allow additional saved arrays.
    where: path of the checkpoint.
    shown: how many differences the error names.

  Raises:
    ValueError: if arrays are missing or left over, or differ.
  """
  names = list(wanted) + ([] if partial else [n for n in saved
                                              if n not in wanted])
  differ = [n for n in names if saved.get(n) != wanted.get(n)]
  if not differ:
    return
  lines = [f'  {n}: {saved.get(n, "absent")} in the checkpoint, '
           f'{wanted.get(n, "absent")} expected' for n in differ[:shown]]
  if len(differ) > shown:
    lines.append(f'  and {len(differ) - shown} more')
  raise ValueError(
      f'the checkpoint is of another model: {len(differ)} leaves of {where} '
      'differ\n' + '\n'.join(lines) + '\nuse the config that it was saved '
      'with, or another workdir')

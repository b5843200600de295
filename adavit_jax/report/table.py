"""Formats results as a table."""

ACCURACY = ('accuracy %', lambda r: f"{100 * r['accuracy']:.2f}")
MACS = ('MACs/image', lambda r: _millions(r['macs']))
OF_DENSE = ('of dense', lambda r: f"{r['macs_ratio']:.3f}")
COLUMNS = (
    ACCURACY,
    MACS,
    OF_DENSE,
    ('of encoders', lambda r: f"{r['encoder_macs_ratio']:.3f}"),
)


def format_rows(rows, columns=COLUMNS):
  """Formats a table, one line for each (label, row).

  Args:
    rows: pairs of a label and a dict; for the default columns a `rows_lib.row`.
    columns: pairs of a name and a function from such a dict to the cell's text.

  Returns:
    A string.
  """
  rows = cells(rows, columns)
  widths = [max(map(len, column)) for column in zip(*rows)]
  def line(cells):
    first, *rest = (c.ljust(w) if i == 0 else c.rjust(w)
                    for i, (c, w) in enumerate(zip(cells, widths)))
    return '  '.join([first, *rest]).rstrip()
  head, *body = map(line, rows)
  return '\n'.join([head, '-' * len(head), *body])


def cells(rows, columns):
  """Returns the texts of a table, a list of lists, the head first.

  Args:
    rows: as of `format_rows`.
    columns: likewise.
  """
  return [['', *(name for name, _ in columns)],
          *([label, *(show(row) for _, show in columns)]
            for label, row in rows)]


def format_policy(row, num_layers):
  """Formats a few lines on how adaptive a policy is.

  Args:
    row: a `rows_lib.adaptive_row` with its threshold or price.
    num_layers: (L1, L2).

  Returns:
    A string.
  """
  correlation = row['difficulty_correlation']
  lines = [
      f"kept: MSA {row['kept_msa_mean']:.2f} ± {row['kept_msa_std']:.2f} of "
      f"{num_layers[0]}, MLP {row['kept_mlp_mean']:.2f} "
      f"± {row['kept_mlp_std']:.2f} of {num_layers[1]}",
      f"distinct action vectors: {row['unique_actions']}",
      'rank correlation of kept layers with the dense loss: '
      + ('-' if correlation is None else f'{correlation:.2f}'),
      f"agreement with the dense prediction: {100 * row['agreement']:.2f} %",
      *(f'{name}: {row[name]:.3f}' for name in ('threshold', 'price')
        if name in row),
  ]
  if 'kept_easy' in row:
    lines += [f"kept on {name} images: {row[f'kept_{name}']:.2f}, "
              f"MSA {row[f'kept_{name}_msa']:.2f}, "
              f"MLP {row[f'kept_{name}_mlp']:.2f}" for name in ('easy', 'hard')]
  return '\n'.join(lines)


def _millions(macs):
  return f'{macs / 1e6:.2f} M' if macs < 1e9 else f'{macs / 1e9:.2f} G'

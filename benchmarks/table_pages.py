"""Markdown of a table, and of how its runs were trained."""

from adavit_jax.report import table as table_lib


def markdown(table, lines, results, seeds):
  """Returns a table in Markdown, with a line on its runs.

  Args:
    table: `paper_tables.Table`.
    lines: of `table_lines.of`.
    results: {(run, seed): dict of `table_runs.result`}.
    seeds: the seeds of the table.
  """
  make = dict(rows=_rows, map=_map, heads=_heads)[table.layout]
  notes = [row.note for row in table.rows if row.note]
  seen = f'seed {seeds[0]}' if len(seeds) == 1 else (
      f'mean of seeds {", ".join(map(str, seeds))}, as far as they have '
      f'results (each in brackets)')
  return '\n\n'.join([
      f'# {table.title}', make(table, lines), f'Accuracy on the test images: '
      f'{seen}.', *notes, *_runs(results)]) + '\n'


def accuracy(line):
  """Text of a line's accuracy: '84.60 (84.50, 84.70)'; '-' without results."""
  each = line['accuracy']
  if not each:
    return '-'
  if len(each) == 1:
    return f"{line['mean']:.2f}"
  return f"{line['mean']:.2f} ({', '.join(f'{x:.2f}' for x in each.values())})"


def grid(lines):
  """Returns the rows and columns of a map and {(row, column): line}."""
  cells = {tuple(map(int, line['run'].split('-')[:2])): line for line in lines}
  rows, columns = (sorted(set(x)) for x in zip(*cells))
  return rows, columns, cells


def grid_rows(rows):
  """Formats lists of texts as Markdown, the head first."""
  head, *body = ('| ' + ' | '.join(cells) + ' |' for cells in rows)
  return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def _number(digits):
  return lambda x: '-' if x is None else f'{x:.{digits}f}'


def _rows(table, lines):
  two, one = _number(2), _number(1)
  flops = f'{table.unit}FLOPs'
  columns = [
      ('accuracy %', accuracy),
      ("the paper's", lambda line: one(line['paper']['accuracy'])),
      (flops, lambda line: two(line['flops'])),
      ("the paper's", lambda line: two(line['paper']['flops']))]
  if table.reference:
    columns += [
        (f'% of {table.reference}', lambda line: one(line['percent'])),
        ("the paper's", lambda line: _number(0)(line['paper']['percent']))]
  return grid_rows(table_lib.cells(
      [(line['label'], line) for line in lines], columns))


def _map(table, lines):
  rows, columns, cells = grid(lines)
  def part(show):
    head = ['', *map(str, columns)]
    return grid_rows([head, *(
        [str(i), *(show(cells[i, j]) if (i, j) in cells else ''
                   for j in columns)] for i in rows)])
  return '\n\n'.join([
      'Accuracy, %:', part(accuracy), f'{table.unit}FLOPs:',
      part(lambda line: f"{line['flops']:.2f}"),
      f'% of the FLOPs of {table.reference}:',
      part(lambda line: f"{line['percent']:.0f}")])


def _heads(table, lines):
  del table
  layers = sorted({line['layer'] for line in lines})
  heads = {}
  for line in lines:
    heads.setdefault(line['head'], {})[line['layer']] = line
  return grid_rows([
      ['head', *(f'layer {n}, accuracy %' for n in layers), 'MACs of the head'],
      *([f'`{head}`', *(accuracy(at[n]) if n in at else '' for n in layers),
         f"{max(line['head_macs'] for line in at.values()):,}"]
        for head, at in heads.items())])


def _runs(results):
  """Says how the runs were trained; a line for each way."""
  ways = {}
  for (run, seed), r in results.items():
    way = (f"schedule {r['schedule']}, {r['steps']:,} steps of "
           f"{r['batch_size']} images, commit {r['commit'] or 'unknown'}, jax "
           f"{r['jax']}, {r['device']}, {r['num_test']:,} test images")
    ways.setdefault(way, []).append(f'{run} (seed {seed})')
  return [f"{', '.join(runs)}: {way}." for way, runs in ways.items()]

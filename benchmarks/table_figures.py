"""Pictures of tables: points, maps, heads, and a sweep over one threshold."""

import numpy as np

from adavit_jax.report import pictures
import table_pages


def draw(table, lines, path):
  """Draws a table as PNG.

  Args:
    table: `paper_tables.Table`.
    lines: of `table_lines.of`.
    path: path of the file.
  """
  dict(rows=_rows, map=_map, heads=_heads)[table.layout](table, lines, path)


def sweep(points, path):
  """Draws accuracy and MACs against one entropy threshold of all exits.

  Args:
    points: dicts with entropy, accuracy and macs, ascending in entropy.
    path: path of the PNG file.
  """
  figure = pictures.new_figure(6, 4)
  left = figure.subplots()
  right = left.twinx()
  x = [p['entropy'] for p in points]
  left.plot(x, [100 * p['accuracy'] for p in points], 'C0-')
  right.plot(x, [p['macs'] / 1e6 for p in points], 'C1--')
  left.set(xlabel='entropy threshold of all exits, nats', xlim=(0, x[-1]))
  left.set_ylabel('test accuracy, %', color='C0')
  right.set_ylabel('million MACs per image', color='C1')
  right.set_ylim(0, None)
  left.grid(alpha=0.3)
  pictures.save(figure, path)


def _rows(table, lines, path):
  figure = pictures.new_figure(6, 4)
  axes = figure.subplots()
  for i, line in enumerate(lines):
    paper, style = line['paper'], dict(color=f'C{i % 10}', linestyle='none')
    x = line['flops'] if line['flops'] is not None else paper['flops']
    each = list(line['accuracy'].values())
    axes.plot([x] * len(each), each, marker='o', label=line['label'], **style)
    if paper['accuracy'] is not None:
      axes.plot(paper['flops'], paper['accuracy'], marker='x',
                label=None if each else line['label'], **style)
  axes.plot([], [], 'kx', label="the paper's")
  axes.set(xlabel=f'{table.unit}FLOPs per image', ylabel='test accuracy, %')
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  pictures.save(figure, path)


def _map(table, lines, path):
  rows, columns, cells = table_pages.grid(lines)
  figure = pictures.new_figure(12, 5)
  for axes, key, digits, title in zip(
      figure.subplots(1, 2), ('mean', 'flops'), (1, 2 if table.unit == 'G' else
      0), ('test accuracy, %', f'{table.unit}FLOPs per image')):
    values = np.array([[_value(cells.get((i, j)), key) for j in columns]
                       for i in rows])
    image = axes.imshow(values, origin='lower', aspect='auto')
    for (i, j), value in np.ndenumerate(values):
      if not np.isnan(value):
        axes.text(j, i, f'{value:.{digits}f}', ha='center', va='center',
                  fontsize=8, color='k' if image.norm(value) > 0.6 else 'w')
    axes.set(title=title, xticks=range(len(columns)), xticklabels=columns,
             yticks=range(len(rows)), yticklabels=rows,
             xlabel='encoders in the second branch',
             ylabel='encoders in the first branch')
    figure.colorbar(image, ax=axes)
  pictures.save(figure, path)


def _value(line, key):
  return np.nan if line is None or line[key] is None else line[key]


def _heads(table, lines, path):
  del table
  figure = pictures.new_figure(6, 4)
  axes = figure.subplots()
  for head in dict.fromkeys(line['head'] for line in lines):
    mine = [line for line in lines if line['head'] == head]
    axes.plot([line['layer'] for line in mine],
              [line['mean'] for line in mine], 'o-', label=head)
  axes.set(xlabel='encoders before the exit', ylabel='test accuracy, %')
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  pictures.save(figure, path)

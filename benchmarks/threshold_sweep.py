"""Accuracy and MACs of a trained run against one entropy threshold."""

import json
import pathlib

import numpy as np

import table_figures
import table_pages

_NUM = 101
_PRINTED = 5  # every so many points


def entropies(num_classes, num=_NUM):
  """Thresholds from 0 to log K in nats, denser at the small ones, [num].

  At 0 no image leaves early; above log K all would leave at the first exit.
  """
  return np.log(num_classes) * np.linspace(0, 1, num) ** 2


def sweep(evaluated, thresholds):
  """Returns a list of `Evaluated.at` for thresholds, with macs_ratio.

  Args:
    evaluated: `table_runs.Evaluated` with several exits.
    thresholds: entropies in nats.
  """
  dense = evaluated.clf.system.plain_cost.dense
  rows = [evaluated.at(t) for t in thresholds]
  return [dict(row, macs_ratio=row['macs'] / dense) for row in rows]


def run(evaluated, directory):
  """Measures a run and writes tau.md, tau.json and tau.png into a directory.

  Args:
    evaluated: `table_runs.Evaluated`.
    directory: an existing directory.

  Returns:
    The table in Markdown, of every fifth threshold.

  Raises:
    ValueError: if the run has one exit.
  """
  if evaluated.num_exits == 1:
    raise ValueError('the model has a single exit, at which no threshold has '
                     'an effect; give a run with exits')
  rows = sweep(evaluated, entropies(evaluated.clf.system.model.num_classes))
  columns = [
      ('threshold', lambda r: f"{r['entropy']:.4f}"),
      ('accuracy %', lambda r: f"{100 * r['accuracy']:.2f}"),
      ('MACs/image', lambda r: f"{r['macs'] / 1e6:.2f} M"),
      ('of dense', lambda r: f"{r['macs_ratio']:.3f}"),
      ('left at each exit %', lambda r: ' '.join(
          f'{100 * s:.1f}' for s in r['shares']))]
  if rows[0]['paper_flops'] is not None:
    columns.insert(4, ('MFLOPs, paper',
                       lambda r: f"{r['paper_flops'] / 1e6:.2f}"))
  text = table_pages.grid_rows([
      [name for name, _ in columns],
      *([show(row) for _, show in columns] for row in rows[::_PRINTED])]) + '\n'
  path = pathlib.Path(directory)
  (path / 'tau.md').write_text(text, encoding='utf-8')
  (path / 'tau.json').write_text(json.dumps(dict(
      step=evaluated.step, num_test=evaluated.correct.shape[1], rows=rows),
      indent=1) + '\n', encoding='utf-8')
  table_figures.sweep(rows, path / 'tau.png')
  return text

"""Trains what a table lacks and writes it: resumable, run by run."""

import fnmatch
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
import jax

from adavit_jax import cost
from adavit_jax.train import config as config_lib
import paper_tables
import run_recipes
import run_results
import table_figures
import table_lines
import table_pages
import table_runs


class Session(NamedTuple):
  """A table, which part of it is wanted, and where.

  Attributes:
    name: key of `paper_tables.TABLES`.
    table: `Table` with the rows that are wanted.
    schedule: one of its recipe's.
    seeds: seeds of each run.
    workdir: directory of the runs.
    folders: directories of results to read, that of this session first.
    data_dir: `config.data.data_dir`; None for the configs' own.
    overrides: {field: value} of the configs of all runs.
  """
  name: str
  table: paper_tables.Table
  schedule: str
  seeds: tuple[int, ...]
  workdir: str
  folders: tuple[str, ...]
  data_dir: str | None
  overrides: dict[str, Any]

  @property
  def start(self):
    """`Recipe` of the run that those of this schedule start from, or None."""
    start = self.table.recipe.start
    return start if start and self.schedule in start.schedules else None

  def config(self, run, seed):
    """Returns the config of a run."""
    config = self._config(self.table.recipe, run, seed)
    if self.start:
      config.init.workdir = self.directory('start', seed, self.start)
    return config

  def start_config(self, seed):
    """Returns the config of the run that the others of a seed start from."""
    return self._config(self.start, 'start', seed)

  def _config(self, recipe, run, seed):
    return run_recipes.config(
        recipe, self.schedule, run, seed, data_dir=self.data_dir,
        overrides=self.overrides)

  def directory(self, run, seed, recipe=None):
    """Returns the work directory of a run."""
    return os.path.join(self.workdir, run_recipes.stem(
        recipe or self.table.recipe, self.schedule, run, seed))

  def result(self, run, seed):
    """Returns the results of a run, None if there are none yet."""
    return run_results.read(
        self.folders, self.table.recipe, self.schedule, run, seed,
        self.config(run, seed))


def create(name, schedule, workdir, *, seeds=(0, 1), rows=None, results=(),
           data_dir=None, overrides=None):
  """Returns the `Session` of a table.

  Args:
    name: key of `paper_tables.TABLES`.
    schedule: one of its recipe's.
    workdir: directory of the runs; ~ is expanded.
    seeds: seeds of each run.
    rows: patterns of names of runs, see `fnmatch`; None for all runs.
    results: directories with results of other sessions.
    data_dir: `config.data.data_dir`; None for the configs' own.
    overrides: {field: value} of the configs of all runs.

  Raises:
    ValueError: if there is no such table, schedule, run, directory of results
      or field, or a config is invalid.
  """
  if name not in paper_tables.TABLES:
    raise ValueError(f'there is no table {name!r}; known: tau, '
                     f'{", ".join(paper_tables.TABLES)}')
  table = paper_tables.TABLES[name]
  workdir = os.path.expanduser(workdir)
  results = tuple(map(os.path.expanduser, results))
  for folder in results:
    if not os.path.isdir(folder):
      raise ValueError(f'--results={folder} is no directory')
  if rows is not None:
    for pattern in rows:
      if not fnmatch.filter(table.runs, pattern):
        raise ValueError(f'--rows={pattern}: {name} has no such run; known: '
                         f'{", ".join(table.runs)}')
    # In the order of the patterns, which is that of training.
    chosen = [run for pattern in rows
              for run in fnmatch.filter(table.runs, pattern)]
    table = table._replace(rows=tuple(
        row for run in dict.fromkeys(chosen) for row in table.rows
        if row.run == run))
  session = Session(
      name, table, schedule, tuple(seeds), workdir,
      (os.path.join(workdir, 'results'), *results), data_dir, overrides or {})
  for run in table.runs:
    config_lib.check(session.config(run, seeds[0]))
  return session


def run(session, *, train=True):
  """Trains and evaluates what is missing, and writes the table.

  Args:
    session: `Session`.
    train: if False, the table is made of the results that there are.

  Returns:
    The table in Markdown.

  Raises:
    Stopped: if a signal stopped a training; the table is not written then.
    ValueError: if a directory holds a run or results of another recipe.
  """
  wanted = [(run, seed) for seed in session.seeds
            for run in session.table.runs]
  missing = [key for key in wanted if session.result(*key) is None]
  if train:
    clock = _Clock(session, missing)
    for i, (run, seed) in enumerate(missing):
      number = len(wanted) - len(missing) + i + 1
      label = f'[{number} of {len(wanted)}] {run}, seed {seed}'
      logging.info('%s%s: %s', label, clock.left(i),
                   session.directory(run, seed))
      _make(session, run, seed, f'{label}: ')
      clock.finished(i)
  return write(session)


def write(session):
  """Writes the table of the results that there are; returns its Markdown.

  It has the name of the table and the schedule, in the work directory: .md,
  .json, of the lines and the sources of figures, and .png.
  """
  table = session.table
  results = {(run, seed): result for run in table.runs
             for seed in session.seeds
             if (result := session.result(run, seed)) is not None}
  models = {run: table_runs.model_of(session.config(run, session.seeds[0]))
            for run in (*table.runs, *filter(None, [table.reference]))}
  lines = table_lines.of(table, results, {
      run: table_runs.flops(model) for run, model in models.items()})
  text = table_pages.markdown(table, lines, results, session.seeds)
  base = pathlib.Path(session.workdir, f'{session.name}_{session.schedule}')
  base.parent.mkdir(parents=True, exist_ok=True)
  base.with_suffix('.md').write_text(text, encoding='utf-8')
  base.with_suffix('.json').write_text(json.dumps(dict(
      table=session.name, schedule=session.schedule, seeds=session.seeds,
      lines=lines, results=list(results.values())), indent=1) + '\n',
      encoding='utf-8')
  table_figures.draw(table, lines, base.with_suffix('.png'))
  return text


def _make(session, run, seed, label):
  """Trains a run and the one that it starts from, and writes its results."""
  config, workdir = session.config(run, seed), session.directory(run, seed)
  if session.start:
    table_runs.train(session.start_config(seed), config.init.workdir,
                     f'{label}{session.start.name}, ')
  table_runs.train(config, workdir, label)
  run_results.write(session.folders[0], table_runs.result(
      workdir, session.table.recipe, session.schedule, run, session.data_dir))
  jax.clear_caches()  # programs of this run


class _Clock:
  """Time that is left for a table, by the MACs of training."""

  def __init__(self, session, missing):
    self._work, self._fresh = [], []
    for run, seed in missing:
      config = session.config(run, seed)
      images = sum(config[phase].steps * config[phase].batch_size
                   for phase in config.phases)
      self._work.append(images * cost.of(table_runs.model_of(config)).dense)
      # Of a run that was stopped, it is unknown how much is left.
      self._fresh.append(not os.path.exists(session.directory(run, seed)))
    self._began, self._rate = time.monotonic(), None

  def left(self, index):
    """Text of the time from the run `index` on; '' before one is measured."""
    if self._rate is None:
      return ''
    hours = sum(self._work[index:]) / self._rate / 3600
    return f', about {hours:.1f} h left for the table'

  def finished(self, index):
    """Notes that the run `index` is finished."""
    now = time.monotonic()
    if self._fresh[index]:
      self._rate = self._work[index] / (now - self._began)
    self._began = now

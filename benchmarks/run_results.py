"""Results of the runs of tables: a small JSON file for each row and seed.

The folders of several sessions can be read together. Files to keep with this
project go to docs/results/runs/.
"""

import json
import os
import pathlib

from absl import logging

import run_recipes

_FORMAT = 1


def write(folder, result):
  """Writes `table_runs.result` into a folder; it is there whole or not at all.

  Args:
    folder: made if it does not exist.
    result: dict.

  Returns:
    Path of the file.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{_stem(result)}.json'
  partial = path.with_suffix(f'.{os.getpid()}.partial')
  partial.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
  partial.replace(path)
  return path


def read(folders, recipe, schedule, run, seed, config):
  """Returns the results of a run from the first folder that has them.

  Args:
    folders: directories; those that do not exist are passed over.
    recipe: `paper_tables.Recipe`.
    schedule: one of its schedules.
    run: name of the run.
    seed: its seed.
    config: the config that the run would have now.

  Returns:
    dict of `table_runs.result`, None if no folder has them.

  Raises:
    ValueError: if a file is damaged or has a newer format, or its run had
      another config.
  """
  name = f'{run_recipes.stem(recipe, schedule, run, seed)}.json'
  paths = [path for path in (pathlib.Path(folder, name) for folder in folders)
           if path.is_file()]
  if not paths:
    return None
  found = [_parse(path) for path in paths]
  for path, result in zip(paths, found):
    run_recipes.check_same(
        result['fields'], run_recipes.fields(config), path)
  if any(result['exits'] != found[0]['exits'] for result in found[1:]):
    logging.warning('%s differ; the first is used',
                    ' and '.join(map(str, paths)))
  return found[0]


def _stem(result):
  return '{recipe}_{run}_{schedule}_seed{seed}'.format(**result)


def _parse(path):
  """Returns the results in a file."""
  try:
    result = json.loads(path.read_text(encoding='utf-8'))
    if result['format'] > _FORMAT:
      raise ValueError(f"format {result['format']} is newer than this program")
    if _stem(result) != path.stem:
      raise ValueError(f'it is of {_stem(result)}')
    if not all(isinstance(result[key], kind) for key, kind in (
        ('exits', list), ('entropies', list), ('fields', dict))):
      raise ValueError('a field has another type')
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} cannot be used ({type(error).__name__}: {error});'
                     f' remove it, and the run is evaluated again') from error
  return result

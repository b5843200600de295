"""The config of a run of a table, and what identifies how it was trained."""

import ast
import importlib.util
import json
import pathlib

from adavit_jax.runs import checks
from adavit_jax.train import config as config_lib

_ROOT = pathlib.Path(__file__).parents[1]
# Do not change what a run learns, or stand in the name of the run.
_NOT_COMPARED = (*checks.FREE_FIELDS, 'seed')


def stem(recipe, schedule, run, seed):
  """Name of a run's directory and of its file of results."""
  return f'{recipe.name}_{run}_{schedule}_seed{seed}'


def variant(recipe, schedule, run):
  """Returns 'FILE' or 'FILE:VARIANT', as train.py would be given it.

  Raises:
    ValueError: if the recipe has no such schedule.
  """
  if schedule not in recipe.schedules:
    raise ValueError(f'--schedule={schedule}: {recipe.name} has none; give '
                     f'--schedule={" or ".join(recipe.schedules)}')
  name = recipe.schedules[schedule].format(run=run)
  return f'{recipe.config}:{name}' if name else recipe.config


def config(recipe, schedule, run, seed, *, data_dir=None, overrides=None):
  """Returns the config of a run.

  Args:
    recipe: `paper_tables.Recipe`.
    schedule: one of its schedules.
    run: name of the run.
    seed: `config.seed`.
    data_dir: `config.data.data_dir`; None leaves it as it is.
    overrides: {field: value}.

  Raises:
    ValueError: if there is no such schedule, or a field is unknown or of
      another type.
  """
  path, _, name = variant(recipe, schedule, run).partition(':')
  spec = importlib.util.spec_from_file_location('config', _ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  result = override(
      module.get_config(name), {**recipe.fields(run), **(overrides or {})})
  result.seed = seed
  if data_dir is not None:
    result.data.data_dir = data_dir
  return result


def override(config, fields):
  """Changes fields of a config, {'a.b': value}; returns it.

  Raises:
    ValueError: if a field is unknown or its value of another type.
  """
  config.lock()
  for field, value in fields.items():
    try:
      config.update_from_flattened_dict({field: value})
    except (AttributeError, KeyError, TypeError) as error:
      raise ValueError(f'{field}={value!r} does not fit the config: {error}'
                       ) from error
  return config


def parse_overrides(texts):
  """Parses texts FIELD=VALUE into {field: value}.

  Raises:
    ValueError: if one has another form.
  """
  overrides = {}
  for text in texts:
    field, equals, value = text.partition('=')
    if not equals or not field:
      raise ValueError(f'{text!r} must be FIELD=VALUE, such as '
                       f'exits.steps=100')
    try:
      overrides[field] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      overrides[field] = value
  return overrides


def fields(config):
  """Returns the fields that differ from the defaults, {field: value} for JSON.

  Fields that do not change what a run learns are left out.
  """
  default, found = _flat(config_lib.default_config()), {}
  for field, value in _flat(config).items():
    if field not in _NOT_COMPARED and value != default.get(field):
      found[field] = value
  return found


def check_same(saved, now, where):
  """Checks that results are of a run with the fields that it would have now.

  Args:
    saved: `fields` of the run of the results.
    now: `fields` of its config now.
    where: where the results are, for the message.

  Raises:
    ValueError: if fields differ; the message names up to five.
  """
  default = _flat(config_lib.default_config())
  saved, now = ({**default, **x} for x in (saved, now))
  differ = [f'{field}: was {saved.get(field)!r}, is now {now.get(field)!r}'
            for field in sorted({*saved, *now})
            if saved.get(field) != now.get(field)]
  if differ:
    raise ValueError(f'{where} is of a run of another recipe '
                     f'({"; ".join(differ[:5])}); give another --workdir, '
                     f'leave its folder out of --results, or give the same '
                     f'--override')


def _flat(config):
  """Returns {'a.b': value}, with lists for tuples, as JSON would have them."""
  flat = {}
  def add(node, prefix):
    for name, value in node.items():
      if isinstance(value, dict):
        add(value, f'{prefix}{name}.')
      else:
        flat[prefix + name] = value
  add(json.loads(json.dumps(config.to_dict())), '')
  return flat

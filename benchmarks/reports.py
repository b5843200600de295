"""Reads the report.json of runs."""

import json
import os


def read(workdir, *, required=True):
  """Returns the report of a run as a dict.

  Args:
    workdir: directory of the run; ~ is expanded.
    required: if False, {} stands for no report.

  Raises:
    ValueError: if there is none, it is cut, or it is of a model with other
      attributes than the run's.
  """
  path = os.path.join(os.path.expanduser(workdir), 'report.json')
  if not os.path.exists(path):
    if not required:
      return {}
    raise ValueError(f'there is no {path}; run python eval.py '
                     f'--workdir={workdir} first')
  with open(path, encoding='utf-8') as file:
    try:
      report = json.load(file)
    except ValueError as error:
      raise ValueError(f'{path} is damaged ({error}); run python eval.py '
                       f'--workdir={workdir} again') from error
  if report.get('attributes'):
    raise ValueError(f"{path} is of a model with {report['attributes']}, by "
                     f'the flag --model; run python eval.py '
                     f'--workdir={workdir} without it')
  return report

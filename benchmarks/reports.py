"""Reads the report.json of runs."""

import json
import os


def read(workdir, *, required=True):
  """Returns the report of a run as a dict.

  Args:
    workdir: directory of the run; ~ is expanded.
    required: if False, {} stands for no report.

  Raises:
    ValueError: if there is none, or it is cut.
  """
  path = os.path.join(os.path.expanduser(workdir), 'report.json')
  if not os.path.exists(path):
    if not required:
      return {}
    raise ValueError(f'there is no {path}; run python eval.py '
                     f'--workdir={workdir} first')
  with open(path, encoding='utf-8') as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(f'{path} is damaged ({error}); run python eval.py '
                       f'--workdir={workdir} again') from error

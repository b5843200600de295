"""benchmarks/pretrained.sh: its runs, what they start from, and its commands.

A script stands for Python: it notes how it is called, and makes its --output.
"""

import os
import pathlib
import shlex
import subprocess

import pytest
import test_docs
import tiny

SCRIPT = pathlib.Path(tiny.ROOT, 'benchmarks', 'pretrained.sh')
STUB = '''#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"; echo >> "$CALLS"
for argument; do
  [[ $argument == --output=* ]] && touch "${argument#*=}"
done
exit 0
'''


@pytest.fixture(scope='module')
def call(tmp_path_factory):
  """Function of names of runs that returns the result and Python's calls."""
  path = tmp_path_factory.mktemp('a place')
  python, calls, weights, images = (
      path / name for name in ('python', 'calls', 'weights', 'images'))
  python.write_text(STUB)
  python.chmod(0o755)
  weights.touch()
  images.mkdir()

  def run(*names, given=(weights, images, path / 'runs')):
    calls.write_text('')
    done = subprocess.run(
        ['bash', SCRIPT, *given, *names], text=True, capture_output=True,
        check=False, env=dict(os.environ, PYTHON=str(python),
                              CALLS=str(calls)))
    return done, [shlex.split(x) for x in calls.read_text().splitlines()]

  return run


@pytest.fixture(scope='module')
def all_calls(call):
  done, calls = call()
  assert not done.returncode, done.stderr
  return calls


def _trained(argv):
  """(name of the run, that of what it starts from)."""
  fields = dict(x.split('=', 1) for x in argv[1:])
  start = fields.get('--config.init.workdir',
                     fields.get('--config.init.weights'))
  return tuple(pathlib.Path(x).stem for x in (fields['--workdir'], start))


def test_every_run_comes_after_what_it_starts_from(all_calls):
  made = {'weights'}
  for argv in all_calls:
    if argv[0] == 'train.py':
      name, start = _trained(argv)
      assert start in made
      made.add(name)
  seeds = {'exits', 'merged_exits', 'small_exits', 'policy', 'merged_policy',
           'everything'}
  assert made == {
      'weights', 'dense', 'px160', 'px128', 'merged', 'agree_exits0',
      'agree_policy0', *(f'{x}{i}' for x in seeds for i in range(3))}


def test_files_are_made_once(all_calls):
  outputs = [x for argv in all_calls for x in argv if x.startswith('--output=')]
  assert [pathlib.Path(x).name for x in outputs] == [
      'dense.safetensors', 'labels.json']


def test_its_commands_are_understood(all_calls, monkeypatch):
  for argv in all_calls:
    if argv[0] == '-m' or 'seed=1' in ' '.join(argv):
      continue
    with monkeypatch.context() as patch:
      own = test_docs._parse(argv, patch)
      if argv[0] == 'train.py':
        test_docs._check_trains(own.config)


def test_some_of_the_runs(call):
  done, calls = call('exits3', 'px96')
  assert not done.returncode, done.stderr
  assert list(map(_trained, calls)) == [('exits3', 'dense'),
                                        ('px96', 'weights')]
  assert '--config.seed=3' in calls[0]
  assert '--config.data.image_size=96' in calls[1]


@pytest.mark.parametrize('names, given, named', [
    (['exit0'], None, "'exit0'"), (['exits'], None, "'exits'"),
    (['dense1'], None, "'dense1'"), ([], ['weights'], 'IMAGES'),
    ([], ['nowhere', '.', 'runs'], "'nowhere'")])
def test_arguments_that_are_refused(call, names, given, named):
  done, calls = call(*names, **({'given': given} if given else {}))
  assert done.returncode == 2 and named in done.stderr and not calls

"""benchmarks/pretrained.sh: its runs, what they start from, and its commands.

A script stands for Python: it notes how it is called, and makes its --output.
"""

import os
import pathlib
import shlex
import subprocess

from adavit_jax.runs import common_groups
import commands
import pytest
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
                              CALLS=str(calls), TRAIN_FLAGS=''))
    return done, [shlex.split(x) for x in calls.read_text().splitlines()]

  return run


@pytest.fixture(scope='module')
def all_calls(call):
  done, calls = call()
  assert not done.returncode, done.stderr
  return calls


def _trained(argv):
  """(name of the run, what it starts from: a run's name or a file's)."""
  fields = dict(x.split('=', 1) for x in argv[1:])
  start = fields.get('--config.init.workdir',
                     fields.get('--config.init.weights'))
  return tuple(pathlib.Path(x).name for x in (fields['--workdir'], start))


def test_every_run_comes_after_what_it_starts_from(all_calls):
  made = {'weights'}
  for argv in all_calls:
    if argv[0] == 'train.py':
      name, start = _trained(argv)
      assert start in made
      made.add(name)
    else:
      made |= {pathlib.Path(x).name for x in argv if x.startswith('--output=')}
  seeds = {*(f'{size}{what}' for size in ('', 'merged_', 'small_')
             for what in ('exits', 'policy')), 'everything', 'small_everything',
           'small_heads'}
  assert made == {
      'weights', 'dense', 'small_dense', 'px128', 'px160', 'px224', 'merged',
      'labels.json', 'agree_exits0', 'agree_policy0',
      *(f'{x}{i}' for x in seeds for i in range(3))}


def test_a_file_is_made_once(all_calls):
  outputs = [x for argv in all_calls for x in argv if x.startswith('--output=')]
  assert len(outputs) == 1


def test_its_commands_are_understood_and_runs_fit(all_calls, monkeypatch):
  systems = {}
  for argv in all_calls:
    script = 'adavit_jax/inference/label_images.py' if argv[0] == '-m' else None
    with monkeypatch.context() as patch:
      own = commands.parse([script, *argv[2:]] if script else argv, patch)
    if argv[0] != 'train.py' or own.config.seed > 0:
      continue  # the other seeds' differ in nothing else
    name, start = _trained(argv)
    systems[name] = commands.check_trains(own.config)
    if start in systems:
      config, phase = systems[start].config, own.config.init.phase
      assert phase == config.phases[-1]
      info = dict(config=config.to_dict(), phase=phase, policy_learned=False)
      groups = common_groups.common_groups(
          systems[start], systems[name], info, start)
      assert own.config.exits.policy == ('policy' in groups)
  assert len(systems) == 17


def test_some_of_the_runs(call):
  done, calls = call('exits3', 'px96')
  assert not done.returncode, done.stderr
  assert list(map(_trained, calls)) == [('exits3', 'dense'),
                                        ('px96', 'weights')]
  assert '--config.seed=3' in calls[0]
  assert '--config.data.image_size=96' in calls[1]


@pytest.mark.parametrize('names, given, named', [
    (['dense', 'exit0'], None, "'exit0'"), (['exits'], None, "'exits'"),
    (['dense1'], None, "'dense1'"), (['exits0x'], None, "'exits0x'"),
    ([], ['weights'], 'IMAGES'),
    ([], ['nowhere', '.', 'runs'], "'nowhere'")])
def test_arguments_that_are_refused(call, names, given, named):
  done, calls = call(*names, **({'given': given} if given else {}))
  assert done.returncode == 2 and named in done.stderr and not calls

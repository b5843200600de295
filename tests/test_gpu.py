"""benchmarks/gpu.sh: order, bounds and what a second call does.

A script stands for Python: it notes how it is called, and does as told.
"""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import commands as commands_lib
import pytest
import tiny

SCRIPT = pathlib.Path(tiny.ROOT, 'benchmarks', 'gpu.sh')
STUB = '''#!/usr/bin/env bash
if [[ $1 == -c ]]; then
  [[ $2 == *torch* ]] && exit ${TORCH:-1}
  echo "$DEVICE"; exit
fi
[[ "$1 $2" == '-m venv' ]] && { mkdir -p "$4/bin"; ln -s "$0" "$4/bin/python"; }
printf '%q ' "XLA_FLAGS=${XLA_FLAGS:-}" "$@" >> "$CALLS"; echo >> "$CALLS"
[[ $* == *${SLOW:-no part}* ]] && exec sleep 60
[[ $* == *${BAD:-no part}* ]] && exit 3
echo "output of $1"
'''


class Runner:
  """Runs the script; `calls` holds what the last run asked of Python."""

  def __init__(self, path):
    self.path, self.out = path, path / 'out'
    self._python, self._calls = path / 'python', path / 'calls'
    self._python.write_text(STUB)
    self._python.chmod(0o755)

  def __call__(self, *args, script=SCRIPT, device='cpu stub', **env):
    self._calls.write_text('')
    env = dict({k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'},
               PYTHON=str(self._python), CALLS=str(self._calls), DEVICE=device,
               **env)
    done = subprocess.run(
        ['bash', str(script), *args, '--out', str(self.out)], env=env,
        text=True, capture_output=True, check=False, cwd=self.path)
    self.calls = [shlex.split(x) for x in self._calls.read_text().splitlines()]
    return done

  @property
  def summary(self):
    """{part: what became of it} of the last run."""
    last = (self.out / 'summary.txt').read_text().rpartition('== ')[2]
    return dict(line.split(': ', 1) for line in last.splitlines()
                if ': ' in line)


@pytest.fixture
def run(tmp_path):
  return Runner(tmp_path)


def test_all_parts_in_order_and_never_twice(run):
  assert not run('--tiny').returncode
  parts = run.summary
  done = [name for name, text in parts.items() if text.startswith('finished')]
  assert done == [
      'modes_vit_digits_patch2_8_1', 'modes_vit_digits_patch2_8_2',
      'attention', 'attention_gradient', 'trained', 'graphs_none_1',
      'graphs_none_2', 'graphs_all_1', 'graphs_all_2', 'passes', 'policy',
      'policy_eval']
  assert len(run.calls) == len(done)
  assert 'PyTorch' in parts['timm']
  assert 'output of train.py' in (run.out / 'policy.txt').read_text()
  flags = {call[0] for call in run.calls}
  assert flags == {'XLA_FLAGS=', *(
      f'XLA_FLAGS= --xla_gpu_enable_command_buffer={x}'
      for x in ('', '+CONDITIONAL,+WHILE'))}
  assert not run('--tiny').returncode
  assert not run.calls
  assert {run.summary[name] for name in done} == {'finished before'}


def test_a_part_that_fails_stops_no_other_and_is_run_again(run):
  assert not run('--tiny', BAD='attention.py').returncode
  assert 'failed with status 3' in run.summary['attention']
  assert run.summary['policy_eval'].startswith('finished')
  run('--tiny')
  assert [call[1] for call in run.calls] == ['benchmarks/attention.py'] * 2
  assert run.summary['attention'].startswith('finished')


def test_a_part_is_cut_at_the_end_and_goes_on(run):
  run('--tiny', BAD='train.py')  # all others end here, whatever they take
  (run.out / 'attention.done').unlink()
  assert not run('--tiny', '0.05', SLOW='train.py').returncode
  assert run.summary['policy'].startswith('cut after')
  assert 'policy_eval' not in run.summary
  assert run.summary['attention'] == 'no time left'  # 5 % of 3 seconds
  run('--tiny')
  assert run.calls[-2][1] == 'train.py'
  assert run.summary['policy_eval'].startswith('finished')


def test_files_that_are_missing_are_named(run):
  copy = run.path / 'copy' / 'benchmarks' / 'gpu.sh'
  copy.parent.mkdir(parents=True)
  shutil.copy(SCRIPT, copy)
  assert not run('--tiny', script=copy).returncode
  assert run.summary['passes'] == 'there is no benchmarks/execution.py'
  assert run.summary['policy'] == 'there is no train.py'
  assert not run.calls


def test_without_a_gpu_it_is_said_so(run):
  done = run()
  assert done.returncode == 1 and 'no GPU' in done.stdout and not run.calls


@pytest.mark.parametrize('args, named', [
    (['0'], 'MINUTES=0'), (['five'], "'five'"), (['--fast'], "'--fast'"),
    (['1.2.3'], "'1.2.3'"), (['--data', 'nowhere'], "'nowhere'"),
    (['--wheels', ''], '--wheels')])
def test_arguments_that_are_refused(run, args, named):
  done = run(*args)
  assert done.returncode == 2 and named in done.stderr and not run.calls


def test_wheels_are_installed_from_a_folder_and_once(run):
  folder = run.path / 'wheels'
  folder.mkdir()
  for name in ('jax_cuda12_plugin-0.10.2', 'torch-2.13.0', 'numpy-2.4.0'):
    (folder / f'{name}-py3-none-any.whl').touch()
  assert not run('--tiny', '--wheels', str(folder)).returncode
  assert run.calls[1][1:] == [
      '-m', 'pip', 'install', '-q', '--no-index', '--find-links', str(folder),
      'adavit_jax[cuda12]', 'torch']
  assert run.calls[2][1] == 'benchmarks/execution.py'
  run('--tiny', GPU_WHEELS=str(folder))
  assert not run.calls
  shutil.rmtree(run.out)
  done = run('--tiny', '--wheels', str(folder), BAD='pip')
  assert done.returncode and 'cannot install' in done.stderr


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
  """All commands that the script gives, tiny and in full."""
  run, calls = Runner(tmp_path_factory.mktemp('gpu')), []
  for args in (['--tiny'], ['--data', str(run.path)]):
    assert not run(*args, device='gpu stub', TORCH='0').returncode
    calls += [call[1:] for call in run.calls]
    shutil.rmtree(run.out)
  assert not any('ravit' in part for call in calls[:14] for part in call)
  return calls


def test_the_flags_of_all_commands_are_known(commands, monkeypatch):
  scripts = set()
  for argv in commands:
    with monkeypatch.context() as patch:
      own = commands_lib.parse(argv, patch)
      scripts.add(argv[0])
      if argv[0] == 'train.py' and 'digits' not in ' '.join(argv):
        commands_lib.check_trains(own.config)
  assert scripts >= {'benchmarks/execution.py', 'benchmarks/attention.py',
                     'train.py', 'eval.py'}


@pytest.mark.nightly
def test_the_tiny_form_on_this_machine(tmp_path):
  done = subprocess.run(
      ['bash', str(SCRIPT), '20', '--tiny', '--out', str(tmp_path)],
      env=dict(os.environ, PYTHON=sys.executable), text=True,
      capture_output=True, check=False)
  assert not done.returncode, done.stderr
  summary = (tmp_path / 'summary.txt').read_text()
  assert 'failed' not in summary and 'cut after' not in summary, summary
  for path in tmp_path.glob('*.json'):
    assert json.loads(path.read_text()), path
  assert 'accuracy' in (tmp_path / 'policy_eval.txt').read_text()

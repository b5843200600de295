"""README.md and docs/: links, commands and Python blocks.

Every command of this project is parsed with the flags of its script, and what
it would train is checked. Nothing is trained here.
"""

import importlib.metadata
import json
import pathlib
import re
import shlex
import subprocess
import sys

import adavit_jax
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.runs import history
from adavit_jax.runs import saved_run
from adavit_jax.runtime import cascade
from adavit_jax.train import config as config_lib
from adavit_jax.train import state as state_lib
import commands
import jax
from PIL import Image
import pytest
import scripts
import tiny

ROOT = pathlib.Path(tiny.ROOT)
PAGES = ('README.md', *sorted(
    str(path.relative_to(ROOT)) for path in ROOT.glob('docs/**/*.md')))
# Whose Python runs here; that of docs/extending.md does in test_extending.
RUN = ('README.md', 'docs/getting_started.md', 'docs/concepts.md',
       'docs/deploying.md', 'docs/weights.md')
# Arguments that are not absl's, so that only the file is looked for.
OWN_ARGUMENTS = ('examples/run_exported.py', 'benchmarks/accuracy_time.py',
                 'benchmarks/curves.py', 'benchmarks/rivals.py',
                 'benchmarks/seeds.py')
# Prints the arguments of a command instead of running it; all others fail.
STUBS = '''
set -euo pipefail
say() { printf '%q ' "$@"; echo; }
python() { say python "$@"; }
pip() { say pip "$@"; }
bash() { say bash "$@"; }
'''
# What stands for a change of this shell, which a command has no part in.
SHELL = ('python3 -m venv .venv', '. .venv/bin/activate')


def _text(page):
  return (ROOT / page).read_text(encoding='utf-8')


def _blocks(page, language):
  return re.findall(rf'^```{language}\n(.*?)^```', _text(page),
                    re.DOTALL | re.MULTILINE)


def _prose(page):
  return re.sub(r'^```.*?^```', '', _text(page),
                flags=re.DOTALL | re.MULTILINE)


def test_readme_is_short():
  assert len(_text('README.md').splitlines()) <= 160


def test_every_page_is_in_the_navigation():
  listed = re.findall(r': (\S+\.md)$', _text('mkdocs.yml'), re.MULTILINE)
  assert sorted(f'docs/{name}' for name in listed) == sorted(PAGES[1:])


def _anchors(page):
  """Of the headings, as GitHub and mkdocs both make them."""
  headings = re.findall(r'^#+ (.*)$', _prose(page), re.MULTILINE)
  plain = [re.sub(r'[^\w\s-]', '', heading.lower()) for heading in headings]
  return {re.sub(r'[-\s]+', '-', heading.strip()) for heading in plain}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  text = re.sub(r'`[^`]*`', '', _prose(page))
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if re.match(r'https?://', target):
      continue
    path, _, anchor = target.partition('#')
    found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert found.is_file(), target
    # A site is made of docs/ alone.
    inside = found.is_relative_to(ROOT / 'docs')
    assert inside or page == 'README.md', target
    if anchor:
      assert anchor in _anchors(found.relative_to(ROOT)), target


def test_every_picture_is_shown():
  shown = {path for page in PAGES
           for path in re.findall(r'images/([\w.]+)\)', _text(page))}
  assert {path.name for path in ROOT.glob('docs/images/*')} == shown


# Commands.


def _shell(script):
  """The commands that bash makes of a script: lists of arguments."""
  for line in SHELL:
    script = script.replace(line, ':')
  script = STUBS + script.replace('.venv/bin/', '')
  done = subprocess.run(
      ['/bin/bash', '-c', script], text=True, env={'PATH': ''},
      capture_output=True, check=False)
  assert not done.returncode, done.stderr
  return [tuple(shlex.split(line)) for line in done.stdout.splitlines()]


def _commands(page):
  inline = [' '.join(code.split()) for code in re.findall(
      r'`((?:python|pip) [^`]*)`', _prose(page))]
  for script in (*_blocks(page, 'bash'), *inline):
    yield from _shell(script)


COMMANDS = sorted({command for page in PAGES for command in _commands(page)})


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_a_command_is_understood(command, monkeypatch):
  program, *argv = command
  if program == 'pip':
    extras = importlib.metadata.metadata('adavit_jax').get_all('Provides-Extra')
    for extra in re.findall(r'\[(\w+)\]', ' '.join(argv)):
      assert extra in extras
    return
  if program == 'bash':
    script = _text(argv[0])
    assert all(x in script for x in argv[1:] if x.startswith('--'))
    return
  if argv[0] == '-m':
    if argv[1] == 'pytest':
      return
    argv = [argv[1].replace('.', '/') + '.py', *argv[2:]]
  assert (ROOT / argv[0]).is_file()
  if argv[0] in OWN_ARGUMENTS:
    return
  own = commands.parse(argv, monkeypatch)
  if argv[0] == 'train.py' and not own.config.model.module:
    commands.check_trains(own.config)


def test_commands_are_found():
  scripts = {argv[0] for program, *argv in COMMANDS if program == 'python'}
  assert {'train.py', 'eval.py', 'export.py', 'examples/run_exported.py',
          'benchmarks/execution.py'} <= scripts


@pytest.mark.parametrize('page', PAGES)
def test_fields_in_the_text_are_those_of_the_config(page):
  known = config_lib.default_config()
  for field in re.findall(r'--config\.([\w.]+)', _text(page)):
    if field == 'x':  # stands for any
      continue
    node = known
    for name in field.split('.'):
      assert name in node, field
      node = node[name]


# Python blocks.


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A directory with what the pages speak of: an image and weights."""
  path = tmp_path_factory.mktemp('docs')
  Image.effect_noise((16, 12), 90).save(path / 'image.png')
  (path / 'images').mkdir()
  for i in range(450):
    Image.effect_noise((8, 8), 90).save(path / 'images' / f'{i}.png')
  name = 'deit_tiny_distilled_patch16_224'
  model = models.create(name)
  weights.save(path / f'{name}.safetensors', model, tiny.params(model))
  return path


# What train.py makes of these configs, but for the training.
_RUNS = {'runs/digits': ('digits_policy', 'joint'),
         'runs/digits_exits': ('digits_exits', 'classifier_wise')}


@pytest.fixture
def runs(monkeypatch):
  """Lets untrained runs lie in the directories that the pages load."""

  def find(self, **_):
    name, phase = _RUNS['/'.join(pathlib.Path(self.workdir).parts[-2:])]
    config = tiny.load(f'configs/{name}.py').get_config()
    return saved_run.Saved('last', 0, dict(
        phase=phase, policy_learned=False, config=config.to_dict(),
        dataset=dict(num_classes=10, channels=1, mean=[.5], std=[.5],
                     class_names=[str(i) for i in range(10)])))

  def state(self, saved, system, mesh):
    del self, saved, mesh
    state = state_lib.init_state(system, 0)
    params = dict(state.params)
    if 'value' in params:  # as if it were fitted
      params['value'] = params['value']._replace(
          kernel=params['value'].kernel + 1)
    return state.replace(params=params)

  monkeypatch.setattr(saved_run.Run, 'find', find)
  monkeypatch.setattr(saved_run.Run, 'state', state)
  monkeypatch.setattr(history, 'unfinished', lambda *_: '')
  monkeypatch.setattr(cascade, 'SIZES', (1,))  # fewer programs to compile


@pytest.mark.parametrize('page', [
    page if page == 'README.md' else pytest.param(
        page, marks=pytest.mark.nightly) for page in RUN])
def test_python_runs_from_top_to_bottom(page, place, runs, monkeypatch):
  monkeypatch.chdir(place)
  monkeypatch.setattr(adavit_jax, 'forward', jax.jit(  # fewer programs
      adavit_jax.forward, static_argnums=0, static_argnames='mode'))
  scope = {}
  for block in _blocks(page, 'python'):
    exec(compile(block, page, 'exec'), scope)  # pylint: disable=exec-used
  assert scope


def test_all_python_is_run():
  others = [page for page in PAGES if _blocks(page, 'python')
            and page not in (*RUN, 'docs/extending.md')]
  assert not others


NOTEBOOKS = sorted(ROOT.glob('notebooks/*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_its_outputs(path):
  assert path.stat().st_size < 250_000
  assert path.name in _text('docs/getting_started.md')
  cells = [cell for cell in json.loads(path.read_text('utf-8'))['cells']
           if cell['cell_type'] == 'code']
  assert [cell['execution_count'] for cell in cells] == [
      i + 1 for i in range(len(cells))]
  kinds = {out['output_type'] for cell in cells for out in cell['outputs']}
  assert kinds and 'error' not in kinds

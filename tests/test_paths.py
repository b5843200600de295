"""Paths as users write them."""

import os

from adavit_jax import paths
import pytest


@pytest.mark.parametrize('path', [
    'a/b', './~a', '/a b/ключ', 'gs://bucket/run', 'a:b'])
def test_paths_stay(path):
  assert paths.expanded(path, 'workdir') == path


def test_home_is_put_in():
  assert paths.expanded('~/a', 'workdir') == os.path.expanduser('~/a')


def test_a_file_to_write_is_tried(tmp_path):
  path = paths.to_write(tmp_path / 'new' / 'file', 'output')
  assert path.parent.is_dir() and not path.exists()
  path.write_text('old')
  assert paths.to_write(path, 'output').read_text() == 'old'
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  assert paths.is_special(pipe) and not paths.is_special(path)
  for wrong in (
      pipe, tmp_path, path / 'file', tmp_path / ('long' * 99), '/proc/file'):
    with pytest.raises(ValueError, match='^output=/.*(pipe|directory|writt)'):
      paths.to_write(wrong, 'output')


def test_files_are_written_as_a_whole(tmp_path, monkeypatch):
  a, b = tmp_path / 'a', tmp_path / 'b'
  paths.write({a: 'é', str(b): b'1'})
  assert a.read_text(encoding='utf-8') == 'é' and b.read_bytes() == b'1'
  (tmp_path / 'c.partial').mkdir()
  with pytest.raises(IsADirectoryError):
    paths.write({a: 'new', tmp_path / 'c': 'new'})
  assert a.read_text(encoding='utf-8') == 'é'
  assert not (tmp_path / 'a.partial').exists()


@pytest.mark.parametrize('path, message', [
    ('', "^output='' is empty"), ('~nobody_here/a', "^output='~nobody_here/a'"),
    ('ftp://host/a', "^output='ftp://host/a'.*gs://")])
def test_what_is_no_path(path, message):
  with pytest.raises(ValueError, match=message):
    paths.expanded(path, 'output')

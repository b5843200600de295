"""The example that runs exported programs: it reads and decides as we do."""

import functools
import re
import runpy
import types

from adavit_jax import data
from adavit_jax.data import decode
from adavit_jax.exits import confidence as confidence_lib
import numpy as np
from PIL import Image
import pytest
import tiny


@functools.cache
def _example():
  return runpy.run_path(f'{tiny.ROOT}/examples/run_exported.py')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name, side', [
    ('a.png', (94, 71)), ('a.jpg', (71, 94)), ('a.jpg', (377, 284)),
    ('a.jpg', (590, 800))])
def test_the_example_reads_the_pixels_of_evaluation(
    tmp_path, channels, name, side):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees
  Image.effect_noise(side, 90).convert('RGB').save(tmp_path / name, exif=exif)
  config = data.default_config()
  config.update(image_size=64, load_size=71)
  want = decode.read(tmp_path / name, config, types.SimpleNamespace(
      image_size=64, channels=channels))
  got = _example()['read'](tmp_path / name, dict(
      channels=channels, size=64, resize=71, interpolation='bicubic'))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('error', [
    'UnidentifiedImageError', 'SyntaxError', 'DecompressionBombError'])
def test_the_example_names_what_it_cannot_decode(tmp_path, monkeypatch, error):
  path = tmp_path / 'a.png'
  Image.new('L', (8, 8)).save(path)
  written = path.read_bytes()
  if error == 'UnidentifiedImageError':
    path.write_bytes(b'x')
  elif error == 'SyntaxError':  # the pixels seem to end after 3 bytes
    start = written.index(b'IDAT') - 4
    path.write_bytes(written[:start] + b'\0\0\0\3' + written[start + 4:])
  else:
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 8)
  sentence = rf'^{re.escape(str(path))} .*\({error}: .+\)$'
  about = dict(channels=1, size=8, resize=8, interpolation='bicubic')
  with pytest.raises(OSError, match=sentence):
    _example()['read'](path, about)


def test_a_directory_with_both_formats_is_ambiguous(tmp_path):
  for name in ('stage_0', 'stage_0.onnx'):
    (tmp_path / name).touch()
  with pytest.raises(SystemExit, match='two formats.*stage_0.onnx'):
    _example()['main'](tmp_path, 'a.png')


def test_the_example_refuses_what_training_reads_otherwise(tmp_path):
  Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / 'a.png')
  with pytest.raises(OSError, match='mode I;16'):
    _example()['read'](tmp_path / 'a.png', dict(
        channels=1, size=8, resize=8, interpolation='bicubic'))


@pytest.mark.parametrize('name', confidence_lib.RULES)
def test_the_example_knows_every_rule(name):
  logits = np.random.default_rng(4).normal(size=(3, 20, 3)).astype(np.float32)
  want = confidence_lib.confidences(confidence_lib.RULES[name], logits)
  memory = None
  for y, row in zip(logits, want):
    got, memory = _example()['confidence'](name, y, memory)
    np.testing.assert_allclose(got, row, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('text', ['', '{"mode": '])
def test_the_example_names_a_cut_file(tmp_path, text):
  (tmp_path / 'm.bin').write_bytes(b'cut')
  (tmp_path / 'm.bin.json').write_text(text)
  with pytest.raises(ValueError, match='m.bin.json'):
    _example()['main'](str(tmp_path / 'm.bin'))
  with pytest.raises(ValueError, match='m.bin'):
    _example()['load'](tmp_path / 'm.bin', 'stablehlo')


@pytest.mark.parametrize('about, given', [
    (dict(threshold=0.6), [0.6]), (dict(price=0.3), [0.3]),
    (dict(threshold=None), []), (dict(price=None), [])])
def test_the_example_hands_on_the_number_of_a_policy(monkeypatch, about, given):
  calls = []

  def call(batch, *numbers):
    calls.append(numbers)
    return np.zeros((len(batch), 2)), np.ones((len(batch), 6))

  run = _example()['run_program']
  monkeypatch.setitem(run.__globals__, 'load', lambda *args: (call, 1))
  images = np.zeros((2, 8, 8, 1), np.uint8)
  assert len(list(run('a', dict(about, format='stablehlo'), images))) == 2
  np.testing.assert_allclose(calls, [given, given], rtol=1e-6)

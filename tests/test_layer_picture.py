"""The picture of the layers that ran on an image, and predict.py."""

from adavit_jax.models.actions import Actions
from adavit_jax.report import layer_picture
from adavit_jax.report import pictures
from matplotlib.patches import Rectangle
import numpy as np
from PIL import Image
import processes
import pytest
import tiny

ALWAYS, RAN, DROPPED, AFTER = range(4)


def test_what_became_of_each_layer():
  model = tiny.model(num_fixed=2)
  of = lambda **given: [
      x.tolist() for x in layer_picture.layers_of(model, **given)]
  assert of() == [[RAN] * 4] * 2
  assert of(actions=Actions(np.array([0., 1]), np.array([1., 0]))) == [
      [ALWAYS, ALWAYS, DROPPED, RAN], [ALWAYS, ALWAYS, RAN, DROPPED]]
  assert of(exit=3) == [[RAN, RAN, RAN, AFTER]] * 2
  assert of(actions=Actions(np.array([0., 0]), np.array([1., 0])), exit=3) == [
      [ALWAYS, ALWAYS, DROPPED, AFTER], [ALWAYS, ALWAYS, RAN, AFTER]]


def test_a_cell_for_each_layer(monkeypatch):
  figures = []
  monkeypatch.setattr(
      pictures, 'save', lambda figure, path: figures.append(figure))
  model = tiny.model(num_fixed=1)
  image = np.zeros((8, 8, 1), np.uint8)
  rows = [
      layer_picture.Row(image, 'a', 'b', layer_picture.layers_of(
          model, Actions(np.array([0., 1, 1]), np.array([1., 1, 0])))),
      layer_picture.Row(image, 'c', 'd', layer_picture.layers_of(
          model, exit=2), exit=2)]
  layer_picture.draw(rows, model, '')
  figure, = figures
  _, first, _, second = figure.axes
  cells = lambda axes: [
      (x.get_x() // 1, x.get_y() // 1, x.get_facecolor() == (1, 1, 1, 1))
      for x in axes.patches if isinstance(x, Rectangle)]
  places = [(x, y) for y in range(2) for x in range(4)]
  assert cells(first) == [
      (*place, place in ((1, 0), (3, 1))) for place in places]
  assert cells(second) == [(*place, place[0] >= 2) for place in places]
  assert second.lines[0].get_xdata()[0] == 2 and not first.lines
  assert [first.get_title(loc) for loc in ('left', 'right')] == ['a', 'b']
  legend, = figure.legends
  assert len(legend.get_texts()) == 4


@pytest.mark.nightly
def test_a_model_of_the_package_predicts(tmp_path):
  path = tmp_path / 'image.png'
  Image.effect_noise((16, 12), 90).save(path)
  run = lambda *args: processes.Process(
      tmp_path, processes.script, 'predict.py', *args)
  process = run(str(path), '--model=digits-policy', '--threshold=0.5',
                f'--output={tmp_path}/out.png')
  assert process.wait() == 0, process.err
  assert 'image.png' in process.out and ' of 14 layers' in process.out
  assert Image.open(tmp_path / 'out.png').width > 500
  for args, message in (((), 'no image'), ((str(path), '--threshold=2'),
                                           'threshold=2')):
    process = run(*args, '--model=digits-policy')
    assert process.wait() != 0
    assert message in process.err.splitlines()[-1]

"""A run in a bucket is the run that it would be on a local disk."""

import json
import time
import types

import adavit_jax
from adavit_jax import data
from adavit_jax import report
from adavit_jax.data import packing
from adavit_jax.runs import checkpoints
from adavit_jax.runs import lease
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from bucket import bucket  # a fixture
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import states
from states import one_device  # a fixture
from states import trace_once  # a fixture
import tiny

pytestmark = pytest.mark.nightly


@pytest.fixture(scope='module')
def runs(bucket, tmp_path_factory):
  """A run on a local disk, and one in a bucket that is stopped and resumed."""
  config, dataset = tiny.get_config(), tiny.dataset()
  places = str(tmp_path_factory.mktemp('local')), f'{bucket}/run'
  local, remote = (
      loop.Trainer(config, place, dataset) for place in places)
  whole = local.train()
  stops = (3, 10, 12, 16, 23)  # 10 and 16 at a checkpoint, 12 between phases
  asked = iter([step in stops for step in range(1, int(whole.step) + 1)])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(preemption.GracefulStop, 'should_stop',
                  lambda self: next(asked))
    states = [remote.train() for _ in range(len(stops) + 1)]
  assert states[:-1] == [None] * len(stops)
  return types.SimpleNamespace(
      places=places, ends=(whole, states[-1]), config=config, dataset=dataset)


@pytest.fixture
def elsewhere(bucket):
  """The bucket as another machine sees it."""
  import gcsfs
  return gcsfs.GCSFileSystem(skip_instance_cache=True, use_listings_cache=False)


def _rows(place):
  text = epath.Path(place, 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _kept(place):
  with checkpoints.Checkpoints(place, read_only=True) as ckpts:
    return {kind: ckpts.steps(kind) for kind in checkpoints.KINDS}


def test_a_resumed_run_is_that_of_a_local_disk(runs):
  local, remote = runs.places
  assert states.differ(*runs.ends) == []
  assert _rows(remote) == _rows(local)
  kept = [_kept(place) for place in runs.places]
  assert kept[1]['last'] == (16, 22, 23)
  for kind in ('best', 'phases'):
    assert kept[1][kind] == kept[0][kind]
  names = {path.name for path in epath.Path(remote).iterdir()}
  assert names == {'checkpoints', 'metrics.jsonl', 'table'}
  again = loop.Trainer(runs.config, remote, runs.dataset).train()
  assert states.differ(again, runs.ends[0]) == []


def test_the_best_checkpoint_is_that_of_a_local_disk(runs):
  images = runs.dataset.test.images(np.arange(4))
  a, b = (adavit_jax.load(place, best=True)(images) for place in runs.places)
  np.testing.assert_array_equal(a.logits, b.logits)


def test_a_report_is_that_of_a_local_disk(runs, monkeypatch):
  monkeypatch.setattr(data, 'load', lambda *args, **kwargs: runs.dataset)
  found = [report.evaluate(place, static=False) for place in runs.places]
  assert [result.pop('workdir') for result in found] == [*runs.places]
  assert found[0] == found[1]
  for picture in epath.Path(runs.places[0]).glob('*.png'):
    assert epath.Path(runs.places[1], picture.name).exists()
  assert 'adaptive' in found[0]


def test_a_second_training_is_refused(runs):
  with checkpoints.Checkpoints(runs.places[1]):
    with pytest.raises(ValueError, match='another training, process'):
      loop.Trainer(runs.config, runs.places[1], runs.dataset).train()


def test_a_lease_that_another_machine_took_is_lost(
    bucket, elsewhere, monkeypatch):
  monkeypatch.setattr(lease, '_RENEW_S', 0.05)
  with checkpoints.Checkpoints(f'{bucket}/lost') as ckpts:
    path = ckpts.directory / 'lease.json'
    taken = json.dumps({**json.loads(path.read_text()), 'id': 'other'})
    deadline = time.monotonic() + 10
    while not ckpts._lease._lost.is_set() and time.monotonic() < deadline:
      elsewhere.pipe(str(path), taken.encode())
      time.sleep(0.1)
    with pytest.raises(ValueError, match='took over'):
      ckpts.save(1, {}, {})
  assert json.loads(path.read_text())['id'] == 'other'


def test_what_another_machine_writes_is_seen(bucket, elsewhere):
  place, state = f'{bucket}/read', {'w': jnp.arange(3.)}
  with checkpoints.Checkpoints(place) as ckpts:
    ckpts.save(1, state, {})
  saved = f'{place}/checkpoints/last'
  with checkpoints.Checkpoints(place, read_only=True) as reader:
    assert reader.latest() == ('last', 1)
    for path in elsewhere.find(f'{saved}/1'):
      elsewhere.mv(path, path.replace('/last/1/', '/last/2/'))
    assert reader.latest() == ('last', 2)
    assert states.same(reader.restore(jax.eval_shape(lambda: state)), state)


def test_a_packed_set_is_copied_once(bucket, tmp_path):
  for split in ('train', 'test'):
    for label, name in enumerate(('cat', 'dog')):
      folder = tmp_path / 'set' / split / name
      folder.mkdir(parents=True)
      for i in range(5):
        Image.new('RGB', (8, 6), (10 * i + label,) * 3).save(
            folder / f'{i}.png')
  packing.pack(packing.source(str(tmp_path / 'set')), tmp_path / 'packed',
            shard_images=4)
  for path in (tmp_path / 'packed').iterdir():
    epath.Path(f'{bucket}/packed/{path.name}').write_bytes(path.read_bytes())
  config = data.default_config()
  config.update(dict(name='packed', data_dir=f'{bucket}/packed', image_size=4,
                     holdout=0., cache_dir=str(tmp_path / 'cache')))

  def grays():
    return data.load(config).train.images(np.arange(10))[:, 0, 0, 0].tolist()

  expected = [10 * i + label for label in range(2) for i in range(5)]
  assert grays() == expected
  # What is there is not copied again, and what was cut off is.
  copied, = (tmp_path / 'cache').iterdir()
  cut = copied / 'train-00001-of-00003.array_record'
  times = {path: path.stat().st_mtime_ns for path in copied.glob('*_record')}
  cut.write_bytes(b'half')
  assert grays() == expected
  assert {path for path, time in times.items()
          if path.stat().st_mtime_ns != time} == {cut}

"""When the processes of a job stop, and how far a host may be ahead."""

import random
import signal
import threading
import time

from adavit_jax.runs import agreement
from adavit_jax.runs import dispatch_limit
from adavit_jax.runs import preemption
import jax
import pytest


class _Store(dict):
  """The coordinator's, as far as it is used; setting takes a while."""

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite
    time.sleep(0.02)
    self[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    until = time.monotonic() + min(milliseconds, 50) / 1000
    while time.monotonic() < until:
      if key in self:
        return self[key]
      time.sleep(0.001)
    raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED')


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_graceful_stop(signum):
  before = [signal.getsignal(s) for s in preemption.SIGNALS]
  with preemption.GracefulStop() as stop:
    assert not stop.should_stop()
    signal.raise_signal(signum)
    assert stop.signum == signum and stop.should_stop()
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signum)
  assert [signal.getsignal(s) for s in preemption.SIGNALS] == before


def _agreements(monkeypatch, num=3):
  """Those of one job."""
  monkeypatch.setattr(agreement, '_numbers', iter([0] * num))
  store = _Store()
  return [agreement.Agreement(store, i, num) for i in range(num)]


def test_processes_of_any_speed_stop_at_one_call(monkeypatch):
  both = _agreements(monkeypatch)
  stopped_at = [0] * len(both)

  def run(index):
    rng = random.Random(index)
    while not both[index].reached():
      stopped_at[index] += 1
      time.sleep(rng.uniform(0.001, 0.004))
    assert both[index].reached()
    both[index].close()

  threads = [threading.Thread(target=run, args=(i,)) for i in range(len(both))]
  for thread in threads:
    thread.start()
  time.sleep(0.1)
  assert all(thread.is_alive() for thread in threads)
  both[1].ask(signal.SIGTERM)
  both[2].ask(signal.SIGINT)
  for thread in threads:
    thread.join(5)
  assert len(set(stopped_at)) == 1 and stopped_at[0] > 1
  assert {a.signum for a in both} <= {signal.SIGTERM, signal.SIGINT}
  assert len({a.signum for a in both}) == 1


def test_slow_steps_are_not_multiplied(monkeypatch):
  """The call after the one in which the signal came is the last."""
  one, other = _agreements(monkeypatch, 2)
  assert not one.reached() and not other.reached()
  other.ask(signal.SIGTERM)  # during a step
  time.sleep(0.3)
  assert one.reached() and other.reached()
  one.close()
  other.close()


def test_one_that_is_done_keeps_no_other_waiting(monkeypatch):
  one, other = _agreements(monkeypatch, 2)
  for _ in range(3):
    assert not one.reached()
  one.close()
  assert not other.reached()
  other.ask(signal.SIGTERM)
  time.sleep(0.3)
  assert not other.reached() and not other.reached()  # as often as `one`
  other.close()


@pytest.mark.parametrize('own, other', [
    (None, signal.SIGINT), (signal.SIGTERM, signal.SIGINT),
    (signal.SIGINT, signal.SIGTERM), (signal.SIGINT, None)])
def test_all_processes_stop_by_one_signal(monkeypatch, own, other):
  store = _Store()
  monkeypatch.setattr(agreement, '_numbers', iter([7]))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(preemption.ocp.multihost, 'get_jax_distributed_client',
                      lambda: store)
  store['adavit_jax/stop/7/said/1'] = f'4 {int(other or 0)}'
  with preemption.GracefulStop() as stop:
    if own:
      signal.raise_signal(own)
    else:
      store['adavit_jax/stop/7/asked'] = 'yes'
    time.sleep(0.2)
    assert [stop.should_stop() for _ in range(6)] == [False] * 4 + [True] * 2
    assert stop.signum == signal.SIGINT
    if not own:  # Its first one comes late: it may not end the saving.
      signal.raise_signal(signal.SIGTERM)
      assert stop.signum == signal.SIGINT


@pytest.mark.parametrize('seconds, most', [
    (5., 0), (0.4, 2), (0.15, 6), (0.001, 16)])
def test_the_host_is_a_second_ahead_of_the_devices(monkeypatch, seconds, most):
  now, done = [0.], []
  def block(step):  # a device that does one step after the other
    done.append(step)
    now[0] = max(now[0], (step + 1) * seconds)
  monkeypatch.setattr(dispatch_limit.jax, 'block_until_ready', block)
  dispatched = dispatch_limit.DispatchLimit(clock=lambda: now[0])
  waiting = []
  for step in range(60):
    now[0] += seconds / 100  # of the host
    dispatched.add(step)
    waiting.append(step + 1 - len(done))
  assert done == list(range(len(done)))
  assert max(waiting) == waiting[-1] == most

"""Every purpose that a run draws for has a key of its own."""

import functools

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.policies import learned
from adavit_jax.runs import pretrained
from adavit_jax.train import state as state_lib
import jax
import jax.numpy as jnp
from one_batch import make_system


def test_no_two_purposes_share_a_key(monkeypatch):
  """Over the first steps: `split(key, n)[i]` is `fold_in(key, i)`."""
  keys = []

  def record(result):
    def function(*args, **options):
      del options
      keys.append(args[-1])
      return result
    return function

  monkeypatch.setattr(models, 'init_params', record({}))
  monkeypatch.setattr(learned, 'init_params', record({}))
  monkeypatch.setattr(weights, 'load', record({}))
  system = make_system()
  seed = system.config.seed
  state = state_lib.init_state(system, seed)
  pretrained.load(system)
  assert len(keys) == 3
  keys.append(jax.random.key(seed))
  chain = [state]
  for _ in range(2):
    chain.append(state_lib.restart(chain[-1], seed))
  for key in (link.key for link in chain):
    steps = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(8))
    keys += [key, *steps, *jax.vmap(jax.random.split)(steps).reshape(-1)]
  found = {tuple(jax.random.key_data(key).tolist()) for key in keys}
  assert len(found) == len(keys) == 4 + 3 * (1 + 8 * 3)

"""A state with random parameters and a batch, to compute losses by hand."""

from adavit_jax.models.actions import Actions
from adavit_jax.runtime import modes
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

B, K = 4, 4
NUM_LAYERS = 3, 3  # that may be dropped
KEY = jax.random.key(3)


def log_softmax(x):
  """Of the last axis, in double precision."""
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def make_system(**fields):
  """The `System` of the tiny config with some of its fields changed."""
  config = tiny.get_config()
  config.update_from_flattened_dict(fields)
  return system_lib.create(config, tiny.dataset())


@pytest.fixture(scope='module')
def state():
  """A state with random parameters, the model being its own teacher."""
  system = make_system()
  state = jax.eval_shape(lambda: state_lib.init_state(system, 0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: jnp.float32(rng.normal(size=x.shape, scale=0.3)), state.params)
  params['policy_stats'] = jax.tree.map(jnp.ones_like, params['policy_stats'])
  value = params['value']
  keep = rng.integers(0, 2, (len(value.bias), 6))
  params['value'] = value._replace(
      masks=Actions.from_keep(jnp.float32(keep), NUM_LAYERS))
  return state.replace(
      params=params, teacher=state_lib.model_params(params),
      log_price=jnp.float32(-1.))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(2)
  labels = rng.integers(0, K, B)
  targets = 0.9 * np.eye(K)[labels] + 0.1 / K
  images = rng.normal(size=(B, 8, 8, 1))
  return step_lib.Batch(*map(jnp.float32, (images, targets)),
                        jnp.int32(labels))


@pytest.fixture(scope='module')
def z1(state, batch):
  model = tiny.model()
  return jax.jit(lambda p, x: modes.before_policy(model, p, x))(
      state.params, batch.images)


@pytest.fixture(scope='module')
def classify(state, z1):
  """From actions [B, 3], [B, 3] to logits [B, K], in the masked mode."""
  model = tiny.model()
  run = jax.jit(
      lambda p, z1, a: modes.after_policy(model, p, z1, a, 'masked').total)
  return lambda actions: run(state.params, z1, Actions(
      *(np.broadcast_to(a, (B, num)) for a, num in zip(actions, NUM_LAYERS))))

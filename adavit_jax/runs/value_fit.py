"""Fits the value policy of a run to what every mask does to every image."""

import contextlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from adavit_jax import progress as progress_lib
from adavit_jax.evaluation import evaluator
from adavit_jax.policies import value as value_lib
from adavit_jax.runs import table_cache
from adavit_jax.train import phases
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib

_PART = 4  # batches that are computed again if a run is killed


def fitted(trainer, state, masks):
  """Returns the state with a value policy fitted to its model.

  Args:
    trainer: `loop.Trainer`. The price is solved for on held-out images, or on
      training images if there are none.
    state: `State` with the statistics of the policy's features.
    masks: candidate `Actions` [C, L1], [C, L2].
  """
  config, system = trainer.config, trainer.system
  params = state_lib.final_params(state)
  inputs, success, _ = _success(
      trainer, params, 'train', masks, config.num_value)
  kernel, bias, penalty = value_lib.fit(inputs, success)
  value = value_lib.Value(
      jnp.asarray(kernel), jnp.asarray(bias), masks, jnp.ones(()))
  priced = 'holdout' if len(trainer.dataset.holdout) else 'train'
  inputs, success, _ = _success(
      trainer, params, priced, masks, config.num_search)
  predicted = value_lib.predict(value, inputs)
  price = value_lib.solve_price(
      predicted, system.deciding('value').cost.ratio(masks), config.mac_target)
  logging.info(
      'value policy: interaction R² %.3f on images of the split %s, penalty '
      '%.3g, price %.4g',
      value_lib.interaction_r2(predicted, success), priced, penalty, price)
  # Hosts may round the fit differently, but must choose the same layers.
  value = multihost_utils.broadcast_one_to_all(value._replace(price=price))
  return state.replace(params={**state.params, 'value': value})


def refitted(trainer, state, phase):
  """Returns the state at the end of a phase, its value policy fitted again.

  It is left alone if the phase did not change the model, or if there was no
  value policy.
  """
  rules = phases.PHASES[phase]
  if ('backbone' not in rules.trains or rules.decides != 'policy'
      or not value_lib.is_fitted(state.params['value'])):
    return state
  state = fitted(trainer, state, state.params['value'].masks)
  return sharded.put(state, trainer.mesh)


def _success(trainer, params, name, masks, num):
  """Runs all masks on up to `num` images of a split, see `Evaluator.success`.

  In a job of one process, the results are kept on disk part by part: a run that
  is stopped in between goes on where it was.
  """
  split = getattr(trainer.dataset, name)
  rows = evaluator.evenly(split, num)
  size = _PART * trainer.config.eval_batch_size
  cache = table_cache.TableCache(
      trainer.workdir, name, (params, tuple(masks), rows, np.int64(size)),
      enabled=jax.process_count() == 1)
  parts, done = [], 0
  with contextlib.closing(progress_lib.Progress(
      len(rows), 'images', f'{len(masks.msa)} masks, {name}')) as progress:
    for i in range(0, len(rows), size):
      here = rows[i:i + size]
      parts.append(cache.get(i, lambda: trainer.evaluator.success(
          params, split, masks, here)))
      done += len(here)
      progress.update(done, done, {})
  return tuple(map(np.concatenate, zip(*parts)))

"""Times the cascade of a model with random weights at given exit shares."""

import functools

import jax
import numpy as np

from adavit_jax import cost
from adavit_jax.exits import confidence
from adavit_jax.exits import shares as shares_lib
from adavit_jax.models import plan
from adavit_jax.runtime import cascade
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages
import timing


def check(name, model, shares):
  """Raises a ValueError unless there is one share for each exit."""
  num = len(plan.exits(model))
  if num != len(shares) or not np.isclose(sum(shares), 1):
    raise ValueError(f'--shares={",".join(map(str, shares))} must be one share '
                     f'for each of the {num} exits of {name}, with sum 1')


def rows(name, model, params, batch, shares, *, repeats, dtype):
  """Times a cascade against the last exit for all images.

  Both take normalized images in NumPy and return NumPy. Each round has its own
  images, and thresholds that let the shares of them leave. At batch size 1 a
  round classifies 32 images one by one.

  Args:
    name: name of the model.
    model: a `Backbone` with several exits.
    params: its parameters, folded.
    batch: B.
    shares: [E], see `check`.
    repeats: number of rounds.
    dtype: compute dtype, a string.

  Yields:
    dicts of `timing.row`: 'dense' is the model without early exits, in one
    program; 'cascade, none leaves' runs all images through every stage. keep is
    the fraction of stages that run.
  """
  spend, rule = cost.of(model), confidence.RULES['max_probability']
  every = jax.jit(lambda params, x: confidence.confidences(
      rule, stages.exit_logits(model, params, x)))
  dense = jax.jit(lambda params, x: modes.dense(model, params, x).total)
  runner = cascade.Cascade(
      stages.stages(model), params, rule, confidence.NEVER, spend.stages,
      sizes=[n for n in cascade.SIZES if n < batch] + [batch])
  count = 32 if batch == 1 else 1
  size, channels = model.image_size, model.channels
  images = [np.float32(np.random.default_rng(i).normal(
      size=(count * batch, size, size, channels))) for i in range(repeats + 1)]
  thresholds = [
      shares_lib.thresholds(every(runner.params, x), shares) for x in images]

  def run(call, values=None):
    def one_round(i):
      if values is not None:
        runner.thresholds = values[i]
      return [call(images[i][k * batch:(k + 1) * batch]) for k in range(count)]
    return one_round

  never = [confidence.NEVER] * len(images)
  runs = {
      'dense': run(lambda x: np.asarray(dense(runner.params, x))),
      'cascade, none leaves': run(runner, never),
      'cascade, ' + '/'.join(f'{100 * s:g}' for s in shares): run(
          runner, thresholds)}
  times = {label: t / count
           for label, t in timing.alternate(runs, repeats).items()}
  row = functools.partial(timing.row, name, dtype=dtype)
  for label, function in runs.items():
    keep = ratio = 1.
    if label != 'dense':
      found = [p for i in range(1, repeats + 1) for p in function(i)]
      keep = np.mean([1 + p.exit.mean() for p in found]) / len(shares)
      ratio = np.mean([p.macs.mean() for p in found]) / spend.exits[-1]
    yield row(label, batch, keep, times[label], times['dense'], ratio)

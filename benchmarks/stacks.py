"""Times each stack of a model alone, with random actions per image."""

import functools

import jax
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.backbone import Stack
from adavit_jax.policies import fixed
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import skipping
import timing


def rows(name, model, params, images, keep, *, repeats, dtype):
  """Times `compact` against all layers, from one place to another.

  A bridge before a stack, or at the end of the plan, is timed with it.

  Args:
    name: name of the model.
    model: a `Backbone`.
    params: its parameters, folded.
    images: [B, S, S, C], normalized.
    keep: fraction of the layers that run.
    repeats: number of rounds.
    dtype: compute dtype, a string.

  Yields:
    dicts of `timing.row`, two for each stack; MACs and times are of the stack.
  """
  x = jax.jit(lambda p, x: modes.embed(model, p, x).x)(params, images)
  start, batch = 0, len(images)
  for stack in model.plan():
    if not isinstance(stack, Stack):
      continue
    stop = start + stack.length
    num = plan.num_layers(model, start, stop)
    draws = [fixed.uniform(jax.random.key(i), batch, num, keep=keep)
             for i in range(repeats + 1)]

    def dense(params, x, start=start, stop=stop):
      return masked.run(model, params, x, images, start=start, stop=stop,
                        inference=True).x

    def compact(params, x, actions, start=start, stop=stop):
      return skipping.run(model, params, x, images, actions, 'compact',
                          start=start, stop=stop)

    runs = {'all': timing.compile_jit(jax.jit(dense), params, x),
            'compact': timing.compile_jit(
                jax.jit(compact), params, x, draws[0])}
    times = timing.alternate({
        'all': lambda i, run=runs['all'][0], x=x: run(params, x),
        'compact': lambda i, run=runs['compact'][0], x=x, draws=draws: run(
            params, x, draws[i])}, repeats)
    macs = plan.segment_macs(model, start, stop)
    each = [[branch.macs for branch in stack.branches if branch.kind == kind]
            * stack.length for kind in draws[0]._fields]
    left_out = [sum(float(np.mean((1 - a) @ np.array(m, float)))
                    for a, m in zip(draw, each)) for draw in draws[1:]]
    row = functools.partial(timing.row, name, batch=batch, dtype=dtype)
    where = f'{stack.group} {stack.start}-{stack.start + stack.length}'
    yield row(f'all, {where}', keep=1, seconds=times['all'],
              dense_seconds=times['all'], mac_ratio=1, **runs['all'][1])
    yield row(f'compact, {where}', keep=keep, seconds=times['compact'],
              dense_seconds=times['all'],
              mac_ratio=[1 - m / macs for m in left_out], **runs['compact'][1])
    x, start = runs['all'][0](params, x), stop

"""Times variants of one model, which share their parameters."""

import ast
import functools

import jax

import adavit_jax
from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.runtime import modes
import timing


def create(name, texts, dtype):
  """Creates the variants of a model.

  Args:
    name: name of the model.
    texts: 'attribute=value' of each variant.
    dtype: compute dtype, a string.

  Returns:
    {text: model}.

  Raises:
    ValueError: if a text is no attribute and value of the model, or the
      parameters have other shapes than those of the first variant.
  """
  variants = {}
  for text in texts:
    attribute, _, value = text.partition('=')
    try:
      value = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      raise ValueError(f'--variants={text} must be ATTRIBUTE=VALUE') from None
    variants[text] = adavit_jax.create(name, dtype=dtype, **{attribute: value})
  shapes = {text: jax.eval_shape(functools.partial(
      models.init_params, model, jax.random.key(0)))
            for text, model in variants.items()}
  for text, tree in shapes.items():
    if tree != shapes[texts[0]]:
      raise ValueError(f'--variants={text} has other parameters than '
                       f'{texts[0]}')
  return variants


def rows(name, variants, params, images, *, repeats, dtype):
  """Times all layers of every variant, in turns.

  Args:
    name: name of the model.
    variants: {text: model}, see `create`.
    params: parameters of all of them, not folded.
    images: [B, S, S, C], normalized.
    repeats: number of rounds.
    dtype: compute dtype, a string.

  Yields:
    dicts of `timing.row`; time and MACs are compared with the first variant's.
  """
  programs, macs = {}, {}
  for text, model in variants.items():
    folded = models.fold(model, params)
    program, stats = timing.compile_jit(
        jax.jit(lambda params, images, model=model: modes.dense(
            model, params, images).total), folded, images)
    programs[text] = functools.partial(program, folded, images), stats
    every = fixed.all_layers(plan.num_layers(model))
    macs[text] = cost.of(model).dense - cost.left_out(model, every)
  times = timing.alternate(
      {text: lambda i, run=run: run() for text, (run, _) in programs.items()},
      repeats)
  first = next(iter(variants))
  for text, (_, stats) in programs.items():
    yield timing.row(
        name, text, len(images), 1, times[text], times[first],
        macs[text] / macs[first], dtype=dtype, **stats)

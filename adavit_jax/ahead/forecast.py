"""Compiles the step of a phase for devices, and says what it will take."""

import functools
import math
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adavit_jax.ahead import collectives
from adavit_jax.ahead import flops
from adavit_jax.data import data_config
from adavit_jax.runs import due
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import resident
from adavit_jax.train import sharded
from adavit_jax.train import step as step_lib


class Forecast(NamedTuple):
  """What a step of a phase takes. Bytes are those of one device.

  Attributes:
    phase: its name.
    batch_size: images in a batch, over all devices.
    parameters: bytes of the parameters.
    optimizer: of the optimizer's state.
    averages: of averaged parameters.
    teacher: of teachers, the dense one and another model.
    activations: of all that the step needs beside its arguments: activations,
      gradients, gathered parameters; None if it does not fit.
    total: of everything; None if the compiler does not say.
    fits: whether the device has as much; None if that is not known.
    flops: FLOPs of a step, over all devices, see `flops.of_jaxpr`.
    seconds: that they take at the peak of all chips, a bound that no step
      reaches; None if the peak is not known.
    collectives: {kind: `collectives.Sent`}; None if it does not fit.
    largest_batch: estimate of the largest batch that fits, see
      `largest_batch`; None if it is not known.
    compile_seconds: time that the compiler took.
    says: what the compiler says of a program that does not fit, else ''.
  """
  phase: str
  batch_size: int
  parameters: int
  optimizer: int
  averages: int
  teacher: int
  activations: int | None
  total: int | None
  fits: bool | None
  flops: int
  seconds: float | None
  collectives: dict[str, collectives.Sent] | None
  largest_batch: int | None
  compile_seconds: float
  says: str = ''


def of_phase(
    system, phase, target, mesh, taught=None, num_images=0) -> Forecast:
  """Compiles the step of a phase as training does on a large data set.

  With `steps_per_call`, it compiles the program of several steps, and what it
  counts is one of them.

  Args:
    system: `System`.
    phase: one of the config's phases.
    target: `targets.Target`.
    mesh: mesh of its devices.
    taught: (`distillation.Teacher`, shapes of its folded groups), or None.
    num_images: training images that devices hold with `steps_per_call`.

  Raises:
    jax.errors.JaxRuntimeError: if the compiler fails for another reason than a
      lack of memory.
  """
  state = sharded.put_shapes(step_lib.abstract_state(system, phase), mesh)
  options, extra = dict(cropped=_cropped(system, phase)), ()
  if taught is not None:
    options['teacher'] = taught[0]
    extra = sharded.put_shapes(taught[1], mesh),
  step, num = step_lib.make_step(system, phase, 0, **options), 1
  inputs = _batch(system, phase, mesh)
  if system.config.steps_per_call > 1:
    num = due.steps_ahead(system.config, phase, 0)
    step = resident.several(step, inputs[0].shape[1:])
    inputs = _rows(*inputs, num, num_images, mesh)
  traced = step_lib.jitted(step, state, mesh).trace(state, *inputs, *extra)
  num_flops = flops.of_jaxpr(traced.jaxpr) // num
  lowered, peak = traced.lower(), target.tflops
  start = time.monotonic()
  compiled, says = _compiled(lowered)
  forecast = Forecast(
      phase, system.config[phase].batch_size,
      parameters=bytes_of(state.params), optimizer=bytes_of(state.opt_state),
      averages=bytes_of(state.ema), teacher=bytes_of((state.teacher, extra)),
      activations=None, total=None, fits=False, flops=num_flops,
      seconds=peak and num_flops / (peak * 1e12 * target.chips),
      collectives=None, largest_batch=None,
      compile_seconds=time.monotonic() - start, says=says)
  if compiled is None:
    return forecast
  held, activations = _memory(compiled)
  return forecast._replace(
      activations=activations, total=held + activations,
      fits=target.usable and held + activations <= target.usable,
      collectives={kind: collectives.Sent(sent.count // num, sent.bytes // num)
                   for kind, sent in collectives.read(
                       compiled.as_text()).items()},
      largest_batch=target.usable and largest_batch(
          forecast.batch_size, held, activations, target.usable,
          mesh.size * system.config[phase].accumulate))


def _compiled(lowered):
  """Returns (compiled program, ''), or (None, why it does not fit)."""
  try:
    return lowered.compile(), ''
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return None, re.sub(r'\s+', ' ', str(error)).split('. ')[0]


def bytes_of(tree) -> int:
  """Returns the bytes that one device holds of a tree of sharded shapes."""
  def size(x):
    shape = x.sharding.shard_shape(x.shape)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return math.prod(shape) * 8  # two words
    return math.prod(shape) * x.dtype.itemsize
  return sum(map(size, jax.tree.leaves(tree)))


def largest_batch(size, held, activations, usable, shares) -> int:
  """Estimates the largest batch that fits, a multiple of the shares.

  All that a step needs beside its arguments is taken to grow with the batch.
  Gradients and gathered parameters do not, so that a larger batch than this
  may fit.

  Args:
    size: a batch that was compiled.
    held: bytes of the arguments on a device.
    activations: bytes beside them.
    usable: bytes that a device has.
    shares: into which a batch is split, over devices and in parts.
  """
  each = (usable - held) / activations * size / shares
  return max(int(each), 0) * shares


def _batch(system, phase, mesh):
  """Returns the shapes of images, or of their views, and labels of a batch."""
  c, num = system.config.data, system.config[phase].batch_size
  side = c.image_size if _cropped(system, phase) else data_config.load_size(c)
  rows = mesh_lib.batch_sharding(mesh)
  labels = jnp.int32 if system.target is None else jnp.float32
  images = jax.ShapeDtypeStruct(
      (num, side, side, system.model.channels), jnp.uint8)
  if step_lib.num_views(system.config, phase):
    images = step_lib.view_shapes(system, phase)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
      (images, jax.ShapeDtypeStruct((num,), labels)))


def _rows(images, labels, num, num_images, mesh):
  """Returns the shapes of `Resident` and of the rows of `num` such batches."""
  shape = functools.partial(
      jax.ShapeDtypeStruct, sharding=mesh_lib.replicated(mesh))
  return (shape((num_images, math.prod(images.shape[1:])), images.dtype),
          shape((num_images,), labels.dtype),
          shape((num, len(labels)), jnp.int32,
                sharding=resident.rows_sharding(mesh)))


def _cropped(system, phase):
  """Whether images are random crops as they are read."""
  c = system.config
  return c.steps_per_call == 1 and bool(
      step_lib.augmentation(c, phase).resized_crop)


def _memory(compiled):
  """Returns bytes on a device: of the arguments, and of the rest."""
  m = compiled.memory_analysis()
  new = m.output_size_in_bytes - m.alias_size_in_bytes
  return m.argument_size_in_bytes, m.temp_size_in_bytes + new

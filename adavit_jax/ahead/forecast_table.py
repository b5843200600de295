"""Forecasts as lines of a table."""

from adavit_jax.ahead import chips as chips_lib

_COLUMNS = (
    ('phase', 16), ('batch', 6), ('params', 7), ('optim', 7), ('EMA', 6),
    ('teacher', 8), ('activ.', 8), ('total', 7), ('fits', 5), ('TFLOP', 8),
    ('ms', 7), ('gather', 8), ('reduce', 8), ('scatter', 8), ('other', 7),
    ('largest', 9), ('compile', 8))

NOTES = '''
params to total: GiB of a device; activ. is all but the arguments of the step
TFLOP: matrix products of a step over all chips; ms: at their peak in bfloat16,
a bound that no step reaches
gather to other: GiB a device puts together by all-gather, adds up by all-reduce
and by reduce-scatter, and exchanges otherwise, in a step
largest: estimate of the largest batch, as if all of activ. grew with the batch
compile: seconds'''


def heading(system, target, mesh):
  """Returns the lines above the first phase.

  Args:
    system: `System`.
    target: `targets.Target`.
    mesh: its mesh.
  """
  c = system.config
  sizes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
  memory = ('' if target.usable is None else
            f', {target.usable / chips_lib.GIB:.2f} GiB for a program on each')
  devices = ('' if target.per_chip == 1 else
             f' with {target.per_chip} devices each')
  first = (f'{c.model.name}, {c.dtype}, on {target.chips} chips of '
           f'{target.kind}{devices}{memory}; mesh {sizes}')
  return first + '\n' + ''.join(
      name.ljust(width) if i == 0 else name.rjust(width)
      for i, (name, width) in enumerate(_COLUMNS))


def row(forecast):
  """Returns the line of a `Forecast`, with a second if it does not fit."""
  f = forecast
  sent = f.collectives and {
      kind: _gib(s.bytes) for kind, s in f.collectives.items()}
  other = f.collectives and _gib(sum(
      f.collectives[kind].bytes
      for kind in ('all-to-all', 'collective-permute')))
  cells = (
      f.phase, f.batch_size, *map(_gib, (
          f.parameters, f.optimizer, f.averages, f.teacher, f.activations,
          f.total)),
      {True: 'yes', False: 'no', None: '?'}[f.fits], f'{f.flops / 1e12:.1f}',
      '?' if f.seconds is None else f'{1e3 * f.seconds:.1f}',
      *((sent['all-gather'], sent['all-reduce'], sent['reduce-scatter'], other)
        if sent else '????'),
      '?' if f.largest_batch is None else f'~{f.largest_batch}',
      f'{f.compile_seconds:.0f}')
  line = ''.join(
      str(cell).ljust(width) if i == 0 else f' {cell}'.rjust(width)
      for i, (cell, (_, width)) in enumerate(zip(cells, _COLUMNS)))
  return f'{line}\n  {f.says}' if f.says else line


def _gib(size):
  return '?' if size is None else f'{size / chips_lib.GIB:.2f}'

"""Checkpoints: the last ones, the best one, and those pinned forever.

They lie in workdir/checkpoints/{last,best,phases}/STEP, each complete in
itself: the state, bit for bit, and a JSON dict that says what it is. Only this
file knows Orbax.
"""

import contextlib
import json
import math

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

# Where two kinds hold the same step, the earlier one here is preferred.
KINDS = ('last', 'phases', 'best')


def quiet_orbax():
  """Hides the dozens of lines that Orbax logs a checkpoint, not its warnings.

  For programs that log information of their own. Nothing is hidden on import:
  the logger, absl's, is the whole application's.
  """
  logging.get_absl_logger().addFilter(
      lambda record: not _of_orbax(record) or record.levelno > 20)


def _of_orbax(record):
  return 'orbax' in record.pathname


@contextlib.contextmanager
def _unwarned_of_read_only():
  """Hides Orbax's warning that a directory is opened as we ask for."""
  logger = logging.get_absl_logger()
  hide = lambda record: not (
      _of_orbax(record) and 'read only' in str(record.msg))
  logger.addFilter(hide)
  try:
    yield
  finally:
    logger.removeFilter(hide)


class Checkpoints:
  """Saves and restores states; all processes must make the same calls."""

  def __init__(self, workdir, *, keep: int = 3, read_only: bool = False,
               alone: bool = False):
    """Opens workdir/checkpoints.

    Args:
      workdir: directory of the run, or a gs:// address.
      keep: how many of the last checkpoints stay.
      read_only: make, tidy and delete nothing; for evaluation, beside a run
        that still goes on too.
      alone: with read_only, this process makes its calls whatever the others
        do, and restores onto its own devices.

    Raises:
      ValueError: keep is below 1, alone without read_only, or a package for
        such an address is not installed.
    """
    if keep < 1:
      raise ValueError(f'keep={keep} must be at least 1')
    if alone and not read_only:
      raise ValueError('alone=True is for read_only=True: to save, all '
                       'processes are needed')
    self.directory = _absolute(workdir) / 'checkpoints'
    try:
      self.directory.exists()
    except ImportError as e:
      raise ValueError(f'workdir={str(workdir)!r} needs a package that is not '
                       f"installed ({e}); for gs:// pip install -e '.[gcs]'"
                       ) from e
    self._read_only = read_only
    counts = {'last': keep, 'best': 1, 'phases': None}
    self._managers = {
        kind: _manager(self.directory / kind, counts[kind], kind, read_only,
                       alone)
        for kind in KINDS}
    # The steps of which this object knows that what lies there is this run's.
    self._own = {kind: set() for kind in KINDS}
    self._best = -math.inf
    step = self._managers['best'].latest_step()
    # A reader has no use for it, and the run may be replacing it just now.
    if step is not None and not read_only:
      self._best = self._json('best', step, 'about')['metric']

  def save(self, step: int, state, info, *, pin: bool = False,
           metric: float | None = None) -> tuple[str, ...]:
    """Starts to save; returns once the arrays are copied to the host.

    A best checkpoint is on disk before the other kind is begun. The caller may
    donate `state` right after. A step that this object saved or restored before
    is not written again; one that an earlier run left behind is replaced.

    Args:
      step: number of the checkpoint, rising over the whole run.
      state: pytree of JAX arrays, typed keys among them.
      info: dict that JSON can hold: phase, config, metrics. Tuples come back
        as lists.
      pin: keep it forever, under 'phases', instead of among the last ones.
      metric: higher is better. If it beats the best so far, a second copy
        becomes the kind 'best'. NaN never does.

    Returns:
      The kinds that were written.

    Raises:
      ValueError: opened with read_only, or `info` does not fit JSON.
    """
    if self._read_only:
      raise ValueError('these checkpoints were opened with read_only=True')
    try:
      json.dumps(info)
    except TypeError as e:
      raise ValueError(f'info must hold only what JSON can, but: {e}; give '
                       'config.to_dict(), and float(x) for arrays') from e
    kinds = ['phases' if pin else 'last']
    if metric is not None and metric > self._best:
      self._best = float(metric)
      kinds.insert(0, 'best')
    kinds = [kind for kind in kinds if step not in self._own[kind]]
    about = {'metric': None if metric is None else float(metric),
             'leaves': _describe(state)}
    for kind in kinds:
      manager = self._managers[kind]
      if step in manager.all_steps():
        manager.wait_until_finished()
        manager.delete(step)
      # Forced, or Orbax would skip a step below one that is already there.
      manager.save(step, force=True, args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state), info=ocp.args.JsonSave(info),
          about=ocp.args.JsonSave(about)))
      self._own[kind].add(step)
      if kind == 'best':
        # First, and for good: a kill after the others would lose it.
        manager.wait_until_finished()
    return tuple(kinds)

  def latest(self) -> tuple[str, int] | None:
    """Gives (kind, step) of the newest checkpoint, None if there is none."""
    found = []
    for rank, kind in enumerate(KINDS):
      step = self.latest_step(kind)
      if step is not None:
        found.append((step, -rank, kind))
    return (max(found)[2], max(found)[0]) if found else None

  def latest_step(self, kind: str = 'last') -> int | None:
    """Gives the newest step of one kind, None if there is none."""
    steps = self.steps(kind)
    return steps[-1] if steps else None

  def steps(self, kind: str = 'last') -> tuple[int, ...]:
    """Gives the steps of one kind in rising order; none that broke off.

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in KINDS:
      raise ValueError(f'kind={kind!r} must be one of {KINDS}')
    if self._read_only:
      # The run may have gone on since.
      self._managers[kind].reload()
    return tuple(sorted(self._managers[kind].all_steps()))

  def info(self, step: int | None = None, kind: str = 'last'):
    """Gives the dict saved with a checkpoint; reads no arrays.

    Args:
      step: which one; None is the newest of the kind.
      kind: 'last', 'best' or 'phases'.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: there is no such kind.
    """
    return self._json(kind, self._find(step, kind), 'info')

  def groups(self, step: int, kind: str = 'last'):
    """Gives {field: names of its entries} of a saved state; reads no arrays.

    Of a dataclass with the field `params`, a dict of trees, for instance
    {'params': {'backbone', 'policy'}}.
    """
    found = {}
    for path in self._json(kind, self._find(step, kind), 'about')['leaves']:
      field, _, rest = path.partition('/')
      found.setdefault(field, set()).add(rest.partition('/')[0])
    return found

  def restore(self, abstract_state, step: int | None = None,
              kind: str = 'last', *, partial: bool = False):
    """Restores a state onto given shardings.

    Args:
      abstract_state: pytree of jax.ShapeDtypeStruct like the saved state,
        e.g. from jax.eval_shape. Each leaf goes to its `sharding`, or to the
        first local device if it has none.
      step: which one; None is the newest of the kind.
      kind: 'last', 'best' or 'phases'.
      partial: allow the checkpoint to hold more, which is not read: for
        instance {'params': ...} out of a dataclass with that field.

    Returns:
      The tree of `abstract_state`, of arrays.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: leaves are missing, left over, or of another shape or dtype.
    """
    step = self._find(step, kind)
    self._managers[kind].wait_until_finished()
    _check_leaves(self._json(kind, step, 'about')['leaves'],
                  _describe(abstract_state), partial,
                  f'{self.directory / kind / str(step)}')
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or device),
        abstract_state)
    state = self._managers[kind].restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
            target, partial_restore=partial,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target)),
    )).state
    self._own[kind].add(step)
    return state

  def wait(self) -> None:
    """Waits until all saves are on disk; raises what went wrong in them."""
    for manager in self._managers.values():
      manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then frees the threads."""
    for manager in self._managers.values():
      manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.close()

  def _find(self, step, kind):
    steps = self.steps(kind)
    if step is None and steps:
      return steps[-1]
    if step not in steps:
      wanted = 'no checkpoint' if step is None else f'no step {step}'
      there = {k: list(self.steps(k)) for k in KINDS}
      raise FileNotFoundError(
          f'{wanted} of the kind {kind!r} in {self.directory}; there are '
          f'{there}')
    return step

  def _json(self, kind, step, item):
    manager = self._managers[kind]
    manager.wait_until_finished()
    return manager.restore(
        step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]


def _absolute(workdir):
  # `absolute` would make a local directory 'gs:' of an address.
  path = epath.Path(workdir)
  return path if '://' in str(path) else path.absolute()


def _manager(directory, max_to_keep, kind, read_only, alone):
  me = jax.process_index()
  # Each kind has its own barriers: two of them may save at the same time.
  processes = ocp.options.MultiprocessingOptions(
      primary_host=me if alone else 0, active_processes={me} if alone else None,
      barrier_sync_key_prefix=kind)
  if read_only:
    # The interval and create are what read_only implies; unset, Orbax warns.
    options = ocp.CheckpointManagerOptions(
        read_only=True, save_interval_steps=0, create=False,
        multiprocessing_options=processes)
    with _unwarned_of_read_only():
      return ocp.CheckpointManager(directory, options=options)
  directory.mkdir(parents=True, exist_ok=True)
  options = ocp.CheckpointManagerOptions(
      max_to_keep=max_to_keep, create=False, cleanup_tmp_directories=True,
      multiprocessing_options=processes)
  return ocp.CheckpointManager(directory, options=options)


def _describe(tree):
  """Gives {path: 'dtype[shape]'}, the same for arrays and abstract leaves."""
  keystr = jax.tree_util.keystr
  return {keystr(path, simple=True, separator='/'):
          f'{x.dtype}{list(x.shape)}'
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check_leaves(saved, wanted, partial, where, shown=5):
  names = list(wanted) + ([] if partial else [n for n in saved
                                              if n not in wanted])
  differ = [n for n in names if saved.get(n) != wanted.get(n)]
  if not differ:
    return
  lines = [f'  {n}: {saved.get(n, "absent")} in the checkpoint, '
           f'{wanted.get(n, "absent")} wanted' for n in differ[:shown]]
  if len(differ) > shown:
    lines.append(f'  and {len(differ) - shown} more')
  raise ValueError(
      f'this checkpoint is of another model: {len(differ)} leaves of {where} '
      'differ\n' + '\n'.join(lines) + '\nuse the config that it was saved '
      'with, or another workdir')

"""Checkpoints: the last ones, the best one, and pinned ones.

They are stored in workdir/checkpoints/{last,best,phases}/STEP. Each contains
the exact state and a JSON dict that describes it. Only this module and
`orbax_manager` use Orbax.
"""

import json
import math

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from adavit_jax import paths
from adavit_jax.runs import checksums
from adavit_jax.runs import lease as lease_lib
from adavit_jax.runs import leaves
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import workdir as workdir_lib

# If two kinds hold the same step, the earlier one here is preferred.
KINDS = ('last', 'phases', 'best')


class Damaged(ValueError):
  """A checkpoint cannot be read, or not as it was saved."""


class Checkpoints:
  """Saves and restores states; all processes must make the same calls."""

  def __init__(self, workdir, *, keep: int = 3, read_only: bool = False,
               alone: bool = False):
    """Opens workdir/checkpoints.

    Args:
      workdir: directory of the run, or a gs:// address.
      keep: how many of the last checkpoints to keep.
      read_only: create and delete nothing; for evaluation, also while the run
        is still training.
      alone: with read_only, this process reads independently of the others and
        restores onto its local devices.

    Raises:
      ValueError: if workdir is empty, keep is below 1, alone is set without
        read_only, the package for such an address is not installed, or another
        training writes there.
    """
    if keep < 1:
      raise ValueError(f'keep={keep} must be at least 1')
    if alone and not read_only:
      raise ValueError('alone=True needs read_only=True: saving involves all '
                       'processes')
    self.directory = _absolute(workdir) / 'checkpoints'
    try:
      self.directory.exists()
    except ImportError as e:
      raise ValueError(f'workdir={str(workdir)!r} needs a package that is not '
                       f"installed ({e}); for gs:// pip install -e '.[gcs]'"
                       ) from e
    self._read_only = read_only
    self._lease = None
    if not read_only:
      with workdir_lib.writing(self.directory):
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lease = lease_lib.Lease(self.directory)
    counts = {'last': keep, 'best': 1, 'phases': None}
    self._managers = {
        kind: orbax_manager.create(
            self.directory / kind, counts[kind], kind, read_only=read_only,
            alone=alone)
        for kind in KINDS}
    # Steps this object has saved or restored.
    self._known = {kind: set() for kind in KINDS}
    # (kind, step) of those that were looked at, that are warned about, and that
    # were discarded.
    self._complete, self._incomplete, self._discarded = set(), set(), set()
    self._alone = alone
    self._best = -math.inf
    step = self.latest_step('best')
    # Readers do not need it, and a running training may be replacing it.
    if step is not None and not read_only:
      self._best = self._json('best', step, 'about')['metric']

  def save(self, step: int, state, info, *, pin: bool = False,
           metric: float | None = None) -> tuple[str, ...]:
    """Starts to save; returns once the arrays are copied to the host.

    A best checkpoint is on disk before the other kind is started. The caller
    may donate `state` after the call. A step that this object saved or restored
    before is not written again; one left by an earlier run is replaced.

    Args:
      step: step of the checkpoint, increasing over the whole run.
      state: pytree of JAX arrays, including typed keys.
      info: JSON-serializable dict: phase, config, metrics. Tuples are read back
        as lists.
      pin: keep the checkpoint forever, under 'phases' instead of 'last', where
        one of this step is then deleted.
      metric: higher is better. If it exceeds the best so far, a second copy is
        saved as 'best'. NaN never is.

    Returns:
      The kinds that were written.

    Raises:
      ValueError: if opened with read_only, `info` is not JSON-serializable,
        another training took over, the directory was deleted, or this save or
        the one before it cannot be written.
    """
    if self._read_only:
      raise ValueError('these checkpoints were opened with read_only=True')
    self._lease.check()
    if not self.directory.exists():
      raise ValueError(f'{self.directory} was deleted while its training ran; '
                       f'nothing more is saved')
    try:
      json.dumps(info)
    except TypeError as e:
      raise ValueError(f'info is not JSON-serializable ({e}); use '
                       'config.to_dict(), and float(x) for arrays') from e
    kinds = ['phases' if pin else 'last']
    if metric is not None and metric > self._best:
      self._best = float(metric)
      kinds.insert(0, 'best')
    kinds = [kind for kind in kinds if step not in self._known[kind]]
    summary = {'metric': None if metric is None else float(metric),
               'leaves': leaves.describe(state)}
    if jax.process_index() == 0:  # which writes it
      summary['arrays'] = checksums.of_arrays(state)
      summary['json'] = checksums.of_json(info, summary)
    for kind in kinds:
      with workdir_lib.writing(self.directory / kind):
        self._save(kind, step, state, info, summary)
        if kind == 'phases':
          self._delete_last(step)
    return tuple(kinds)

  def _save(self, kind, step, state, info, summary):
    manager = self._managers[kind]
    if step in manager.all_steps():
      manager.wait_until_finished()
      manager.delete(step)
    # Without force, Orbax skips steps below the latest one.
    manager.save(step, force=True, args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(orbax_manager.one_copy(state)),
        info=ocp.args.JsonSave(info), about=ocp.args.JsonSave(summary)))
    self._known[kind].add(step)
    if kind == 'best':
      # A kill after the other kind was saved must not lose the best one.
      manager.wait_until_finished()

  def _delete_last(self, step):
    """Deletes what a stop saved before the same step was finished."""
    manager = self._managers['last']
    if step in manager.all_steps():
      self._managers['phases'].wait_until_finished()
      manager.delete(step)
      self._known['last'].discard(step)

  def latest(self) -> tuple[str, int] | None:
    """Returns (kind, step) of the newest checkpoint, or None without any.

    Raises:
      ValueError: if there are checkpoints, but none is complete.
    """
    candidates = []
    for rank, kind in enumerate(KINDS):
      step = self.latest_step(kind)
      if step is not None:
        candidates.append((step, -rank, kind))
    if not candidates:
      broken = [f'{kind}/{step}' for kind in KINDS
                for step in self._managers[kind].all_steps()]
      if broken:
        raise ValueError(
            f'no checkpoint in {self.directory} is complete ({broken}): copy '
            f'them again, or delete {self.directory} to train from the start')
      return None
    step, _, kind = max(candidates)
    return kind, step

  def latest_step(self, kind: str = 'last') -> int | None:
    """Returns the newest step of one kind, or None without any."""
    steps = self.steps(kind)
    return steps[-1] if steps else None

  def steps(self, kind: str = 'last') -> tuple[int, ...]:
    """Returns the completely saved steps of one kind, ascending.

    Checkpoints that lack files, as after a copy that broke off, are left out
    with a warning.

    Raises:
      ValueError: if the kind is unknown.
    """
    if kind not in KINDS:
      raise ValueError(f'kind={kind!r} must be one of {KINDS}')
    if self._read_only:
      # A running training may have added or deleted steps.
      self._managers[kind].reload()
    steps = sorted(self._managers[kind].all_steps())
    return tuple(step for step in steps if self._is_complete(kind, step))

  def _is_complete(self, kind, step):
    # Others of this object may be on their way to the disk.
    if step in self._known[kind]:
      return True
    if (kind, step) in self._discarded:
      return False
    if (kind, step) in self._complete:
      return True
    path = self.directory / kind / str(step)
    try:
      info, about = (json.loads((path / item / 'metadata').read_text())
                     for item in ('info', 'about'))
      missing = [name for name in ('_METADATA', 'manifest.ocdbt')
                 if not (path / 'state' / name).exists()]
      saved = about.pop('json', None)  # older ones have none
      if saved not in (None, checksums.of_json(info, about)):
        missing.append('info and about differ from what was saved')
    except (OSError, ValueError) as error:
      missing = [str(error)]
    if missing:
      # A running training may have deleted it, which is nothing to warn of.
      if (kind, step) not in self._incomplete and path.exists():
        self._incomplete.add((kind, step))
        logging.warning('the checkpoint %s is incomplete and not used: %s',
                        path, ', '.join(missing))
      return False
    self._complete.add((kind, step))
    return True

  def info(self, step: int | None = None, kind: str = 'last'):
    """Returns the `info` saved with a checkpoint; reads no arrays.

    Args:
      step: the step; None for the newest of the kind.
      kind: 'last', 'best' or 'phases'.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if the kind is unknown.
    """
    return self._json(kind, self._find(step, kind), 'info')

  def groups(self, step: int, kind: str = 'last'):
    """Returns {field: names of its entries} of a saved state; reads no arrays.

    For example {'params': {'backbone', 'policy'}} for a dataclass whose field
    `params` is a dict of trees.
    """
    groups = {}
    for path in self._json(kind, self._find(step, kind), 'about')['leaves']:
      field, _, rest = path.partition('/')
      groups.setdefault(field, set()).add(rest.partition('/')[0])
    return groups

  def restore(self, abstract_state, step: int | None = None,
              kind: str = 'last', *, partial: bool = False):
    """Restores a state onto the given shardings.

    Args:
      abstract_state: pytree of jax.ShapeDtypeStruct like the saved state,
        e.g. from jax.eval_shape. Each leaf goes to its `sharding`, or to the
        first local device if it has none.
      step: the step; None for the newest of the kind.
      kind: 'last', 'best' or 'phases'.
      partial: allow additional leaves in the checkpoint, which are not read,
        e.g. to restore {'params': ...} from a dataclass with that field.

    Returns:
      The tree of `abstract_state`, with arrays.

    Raises:
      Damaged: if files of the checkpoint are missing, or arrays are not those
        that were saved. All processes raise it.
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if leaves are missing or left over, or differ in shape or
        dtype.
    """
    step = self._find(step, kind)
    self._managers[kind].wait_until_finished()
    path = self.directory / kind / str(step)
    about = self._json(kind, step, 'about')
    leaves.check(
        about['leaves'], leaves.describe(abstract_state), partial, path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or device),
        abstract_state)
    arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore(
        target, partial_restore=partial,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target)))
    state, error = None, None
    try:
      state = self._managers[kind].restore(step, args=arguments).state
      differ = checksums.differing(state, about.get('arrays', {}))
      if differ:
        error = ValueError(f'{len(differ)} arrays differ from what was saved, '
                           f'the first is {differ[0]}')
    except (ValueError, KeyError, OSError) as failure:
      error = failure
    if not self._alone and jax.process_count() > 1:
      failed = multihost_utils.process_allgather(np.array(error is not None))
      if error is None and failed.any():
        error = ValueError(f'process {failed.argmax()} cannot read it')
    if error is not None:
      raise Damaged(f'{path} cannot be read: copy it again, or delete it to '
                    f'use the checkpoint before it\n{error}') from error
    self._known[kind].add(step)
    return state

  def discard(self, kind: str, step: int) -> None:
    """Leaves a checkpoint out from now on, until its step is saved again."""
    self._discarded.add((kind, step))
    if kind == 'best':
      self._best = -math.inf
    self._known[kind].discard(step)
    self._complete.discard((kind, step))

  def wait(self) -> None:
    """Waits until all saves are on disk; re-raises their errors."""
    for kind, manager in self._managers.items():
      with workdir_lib.writing(self.directory / kind):
        manager.wait_until_finished()

  def close(self) -> None:
    """Waits for all saves, then frees the threads."""
    try:
      for kind, manager in self._managers.items():
        with workdir_lib.writing(self.directory / kind):
          manager.close()
    finally:  # also if a save failed
      if self._lease is not None:
        self._lease.release()

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
      available = {k: list(self.steps(k)) for k in KINDS}
      raise FileNotFoundError(
          f'{wanted} of the kind {kind!r} in {self.directory}; available: '
          f'{available}')
    return step

  def _json(self, kind, step, item):
    manager = self._managers[kind]
    manager.wait_until_finished()
    return manager.restore(
        step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]


def _absolute(workdir):
  path = epath.Path(paths.expanded(workdir, 'workdir'))
  if '://' not in str(path):
    return path.absolute()  # which turns an address into a local path
  workdir_lib.fresh_listings(path)
  return path

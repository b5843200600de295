"""The training loop: runs the phases of a config, resumable at any step."""

import contextlib
import functools

from absl import logging
import numpy as np

from adavit_jax import data
from adavit_jax import errors
from adavit_jax import paths
from adavit_jax import progress as progress_lib
from adavit_jax.evaluation import evaluator
from adavit_jax.evaluation import exit_evaluator
from adavit_jax.evaluation import validate
from adavit_jax.runs import calls as calls_lib
from adavit_jax.runs import checkpoints
from adavit_jax.runs import checks
from adavit_jax.runs import devices
from adavit_jax.runs import dispatch_limit
from adavit_jax.runs import due as due_lib
from adavit_jax.runs import first_state
from adavit_jax.runs import frozen_views
from adavit_jax.runs import history
from adavit_jax.runs import metric_writer
from adavit_jax.runs import phase_end
from adavit_jax.runs import phase_start
from adavit_jax.runs import preemption
from adavit_jax.runs import pretrained
from adavit_jax.runs import same_hosts
from adavit_jax.runs import saved_run
from adavit_jax.runs import teacher as teacher_lib
from adavit_jax.runtime import stopping
from adavit_jax.train import accumulate
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import resident as resident_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib


class Trainer:
  """Everything that one process needs to train a run."""

  def __init__(self, config, workdir, dataset=None, *, run=None, label=''):
    """Checks the config against data, model and devices.

    Args:
      config: see `train.config.default_config`.
      workdir: directory of the run.
      dataset: `Dataset`; None loads `config.data`.
      run: the opened `Run` if it is to be evaluated and not trained, maybe on
        other devices: all are used and hold the whole state, batch sizes of the
        phases are not checked, and the evaluation batch size is rounded up.
        Training checks the sizes again.
      label: text before the phase in lines of progress.

    Raises:
      ValueError: if the config is invalid, before anything is computed.
    """
    config_lib.check(config)
    workdir = paths.expanded(workdir, 'workdir')
    if run is not None:
      saved = run.newest()
    else:
      with saved_run.Run(workdir) as opened:
        saved = opened.newest()
      if saved is None:
        config_lib.check_value_policy(config)
    config = pretrained.with_preprocessing(config, saved)
    self.config, self.workdir = config, workdir
    self.stopped_by, self._label = None, label
    self._origin = first_state.Origin()
    if run is not None:
      config = self.config = config.copy_and_resolve_references()
      config.mesh.update(data=-1, fsdp=1)
      self.mesh = mesh_lib.make_mesh()
      config.eval_batch_size += -config.eval_batch_size % self.mesh.size
    else:
      self.mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp)
      accumulate.check(config, self.mesh)
    self.dataset = dataset or data.load(config.data, seed=config.seed)
    same_hosts.check(config, self.dataset, saved)
    checks.sizes(config, self.dataset)
    if run is None:
      resident_lib.check(config, self.dataset.train)
    self.system = system_lib.create(config, self.dataset)
    phases.check(self.system)
    if saved is None and run is None:
      checks.both_heads(config, self.system)
    checks.budget(config, self.system)
    if run is None:
      frozen_views.check(self.system, self.dataset, saved)
    self._weights = None  # of init.weights, until the run starts
    if saved is None and config.init.weights:
      self._weights = pretrained.load(
          self.system, self.dataset.class_names)
    self._teacher, self._taught_by = None, teacher_lib.digest(None, saved)
    if run is None:
      self.read_teacher(saved)
    self.evaluator, self.exit_evaluator = (
        kind(self.system, self.mesh, config.eval_batch_size)
        for kind in (evaluator.Evaluator, exit_evaluator.ExitEvaluator))

  def read_teacher(self, saved):
    """Reads the teacher if a phase after a checkpoint learns from it.

    Args:
      saved: `Saved`, or None for all phases.
    """
    if self._teacher is None:
      self._teacher = teacher_lib.needed(self, saved)
      self._taught_by = teacher_lib.digest(self._teacher, saved)

  def info(self, phase, start, finished, due=False, begun=True):
    """Returns the info of a checkpoint, JSON-serializable.

    Args:
      phase: the phase of its state.
      start: step at which the phase began.
      finished: whether the phase is over.
      due: see `FirstState`.
      begun: whether the phase has made at least one step.
    """
    d = self.dataset
    return dict(
        phase=phase, start=start, finished=finished, due=due, begun=begun,
        **self._origin._asdict(), taught_by=self._taught_by,
        config=self.config.to_dict(), devices=devices.describe(self.mesh),
        dataset=dict(num_classes=d.num_classes, channels=d.channels,
                     mean=list(map(float, d.mean)), std=list(map(float, d.std)),
                     class_names=list(d.class_names), target=d.target,
                     split=data.fingerprint(d), files=d.files))

  def train(self):
    """Runs the remaining phases of the config.

    Returns:
      The final `State`, or None if a signal stopped the run. The state is then
      saved, and `stopped_by` is the signal.

    Raises:
      NonFiniteError: if a metric is NaN or infinite.
      ValueError: if the directory holds a run of another config or model.
    """
    config = self.config
    with (checkpoints.Checkpoints(self.workdir) as ckpts,
          preemption.GracefulStop() as stop,
          stopping.checked_by(stop.check)):
      try:
        first = self._restore(ckpts)
        state, start = first.state, first.start
        with metric_writer.MetricWriter(
            self.workdir, resume_step=int(state.step),
            due=first.due) as metrics:
          for phase in config.phases[first.index:]:
            if not first.entered:
              state = self._enter(state, phase, ckpts, first.origin)
            state = self._run_phase(
                state, phase, start, ckpts, metrics, stop, first.due)
            start = int(state.step)
            first = first._replace(entered=False, due=False)
      except stopping.Stopped:
        ckpts.wait()
        _, step = ckpts.latest() or ('', 0)
        logging.warning('stopped by a signal at step %d; the same command '
                        'resumes', step)
        self.stopped_by = stop.signum
        return None
      return state

  def _enter(self, state, phase, ckpts, origin):
    """Returns the state at the start of a phase, see `phase_start.enter`."""
    state = phase_start.enter(self, state, phase, origin.had_price)
    if phase == 'warm_start':  # whose mask search takes minutes
      start = int(state.step)
      ckpts.save(start, state, self.info(
          phase, start, finished=False, begun=False))
    return state

  def _restore(self, ckpts):
    """Returns the `FirstState`: resumed if there is a checkpoint, else new."""
    if ckpts.latest() is not None:
      first = first_state.resume(self, ckpts)
    else:
      weights, self._weights = self._weights, None
      first = first_state.begin(self, weights)
    self._origin = first.origin
    return first

  def policy_has_learned(self, phase):
    """Returns whether the policy is trained on the model at a phase's start."""
    names = list(self.config.phases)
    return history.policy_trained_by(
        names[:names.index(phase)], self._origin.policy_learned)

  @functools.cached_property
  def resident(self):
    """`Resident` training images; None if batches come from the host."""
    if self.config.steps_per_call == 1:
      return None
    return resident_lib.put(self.dataset.train, self.mesh)

  def _run_phase(self, state, phase, start, ckpts, metrics, stop, overdue):
    """Trains until the end of a phase.

    Args:
      state: `State` during the phase.
      phase: its name.
      start: step at which it began.
      ckpts: `Checkpoints`.
      metrics: `MetricWriter`.
      stop: `GracefulStop`.
      overdue: whether what follows the state's step is still to be done.

    Returns:
      `State`.

    Raises:
      Stopped: if a signal stopped the run; its state is saved.
    """
    end, step = start + self.config[phase].steps, int(state.step)
    taught = self._teacher and phase in self.config.teacher.phases
    crop = data.crop_on_reading(
        self.dataset.train, step_lib.augmentation(self.config, phase))
    options = dict(teacher=self._teacher.teacher) if taught else {}
    options |= dict(cropped=True) if crop else {}
    split = self.dataset.train
    if step < end and step_lib.num_views(self.config, phase):
      split = frozen_views.read(self, state, phase, start, crop)
      crop = None
    taught_by = (self._teacher.params,) if taught else ()
    step_fn = step_lib.make_step(self.system, phase, start, **options)
    program = step_lib.jitted(
        calls_lib.program(self, step_fn), state, self.mesh)
    if overdue:
      due = due_lib.after(self.config, phase, step - start, False)
      state = self._after_step(state, step, phase, start, due, ckpts, metrics)
    compiled = {}  # for each number of steps
    recent = []  # metrics of the calls since the last line
    calls = calls_lib.of_phase(self, split, phase, start, step, crop)
    dispatched = dispatch_limit.DispatchLimit()
    with (contextlib.closing(calls), contextlib.closing(
              progress_lib.Progress(
                  end, label=f'{self._label}{phase}')) as progress):
      for num, inputs in calls:
        if num not in compiled:
          compiled[num] = program.lower(state, *inputs, *taught_by).compile()
          if len(compiled) == 1:  # later, there are steps to save
            stopping.check()
        state, call_metrics = compiled[num](state, *inputs, *taught_by)
        step += num
        recent.append(call_metrics)
        dispatched.add(call_metrics)
        due = due_lib.after(
            self.config, phase, step - start, stop.should_stop())
        if due.line:
          self._write_line(recent, step, phase, metrics, progress)
          recent = []
        state = self._after_step(
            state, step, phase, start, due, ckpts, metrics)
        if due.stop:
          raise stopping.Stopped
    return state

  def _after_step(self, state, step, phase, start, due, ckpts, metrics):
    """Does what is `due.Due` after a step, except for its line of metrics.

    Args:
      state: `State` after the step.
      step: the step, also of the state, which the devices may still compute.
      phase, start, ckpts, metrics: as in `_run_phase`.
      due: `due.Due`.

    Returns:
      `State`.

    Raises:
      Stopped: if a signal came meanwhile. The state is saved as it was, and
        what is due is done when the run is resumed.
    """
    score, before = None, state
    try:
      if due.end:
        state = phase_end.leave(self, state, phase)
      if due.validation:
        score = self._validate(state, phase, step, metrics)
    except stopping.Stopped:
      metrics.sync()
      ckpts.save(step, before, self.info(phase, start, False, due=True))
      raise
    if due.checkpoint:
      metrics.sync()
      ckpts.save(step, state, self.info(phase, start, due.end), pin=due.end,
                 metric=score if due.scored else None)
    return state

  def _write_line(self, recent, step, phase, metrics, progress):
    """Checks the metrics of the last calls and writes their mean.

    Raises:
      NonFiniteError: if one is NaN or infinite.
    """
    rows = mesh_lib.fetch(recent)
    if self.resident is not None:
      rows = resident_lib.each(rows)
    for i, row in enumerate(rows, step - len(rows) + 1):
      errors.check_finite(i, row)
    values = _mean(rows)
    metrics.write(step, {f'{phase}/{k}': v for k, v in values.items()})
    progress.update(step, step * self.config[phase].batch_size, values)

  def _validate(self, state, phase, step, metrics):
    """Evaluates on held-out images; returns the score, None without any."""
    split = self.dataset.holdout
    if not len(split):
      return None
    score, values = validate.validate(self, state, phase)
    metrics.write(step, {f'holdout/{k}': v for k, v in values.items()})
    logging.info('%s, step %d, held out: %s', phase, step, ', '.join(
        f'{k} {np.round(v, 4)}' for k, v in values.items()))
    return score


def _mean(rows):
  return {k: np.mean([r[k] for r in rows], axis=0) for k in rows[0]}

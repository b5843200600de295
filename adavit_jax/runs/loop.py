"""The training loop: runs the phases of a config, resumable at any step."""

from absl import logging
from clu import parameter_overview
import jax
import numpy as np

from adavit_jax import data
from adavit_jax.evaluation import evaluator
from adavit_jax.evaluation import exit_evaluator
from adavit_jax.evaluation import validate
from adavit_jax.runs import checkpoints
from adavit_jax.runs import checks
from adavit_jax.runs import history
from adavit_jax.runs import phase_start
from adavit_jax.runs import preemption
from adavit_jax.runs import pretrained
from adavit_jax.runs import run as run_lib
from adavit_jax.runs import writer
from adavit_jax.train import config as config_lib
from adavit_jax.train import guards
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib


class Trainer:
  """Everything that one process needs to train a run."""

  def __init__(self, config, workdir, dataset=None, *, run=None):
    """Checks the config against data, model and devices.

    Args:
      config: see `train.config.default_config`.
      workdir: directory of the run.
      dataset: `Dataset`; None loads `config.data`.
      run: the opened `Run` if it is to be evaluated and not trained, maybe on
        other devices: batch sizes of the phases are not checked, and the
        evaluation batch size is rounded up. Training checks the sizes again.

    Raises:
      ValueError: if the config is invalid, before anything is computed.
    """
    config_lib.check(config)
    if run is not None:
      saved = run.newest()
    else:
      with run_lib.Run(workdir) as opened:
        saved = opened.newest()
    config = pretrained.with_preprocessing(config, saved)
    self.config, self.workdir = config, workdir
    self.stopped_by = None
    self._began_from = ''  # phase of the run in init.workdir
    self._had_price = False  # whether that run set the price of MACs
    self._policy_learned = False  # whether that run trained the policy
    self.mesh = mesh_lib.make_mesh()
    if run is not None:
      config = self.config = config.copy_and_resolve_references()
      config.eval_batch_size += -config.eval_batch_size % self.mesh.size
    else:
      for phase in config.phases:
        mesh_lib.check_batch_size(
            config[phase].batch_size, self.mesh, f'{phase}.batch_size')
    self.dataset = dataset or data.load(config.data, seed=config.seed)
    checks.sizes(config, self.dataset)
    self.system = system_lib.create(config, self.dataset)
    phases.check(self.system)
    if saved is None and run is None:
      checks.both_heads(config, self.system)
    checks.budget(config, self.system)
    self._weights = None  # of init.weights, until the run starts
    if saved is None and config.init.weights:
      self._weights = pretrained.load(self.system)
    self.evaluator, self.exit_evaluator = (
        kind(self.system, self.mesh, config.eval_batch_size)
        for kind in (evaluator.Evaluator, exit_evaluator.ExitEvaluator))

  def info(self, phase, start, finished):
    """Returns the info of a checkpoint, JSON-serialisable."""
    d = self.dataset
    return dict(
        phase=phase, start=start, finished=finished,
        began_from=self._began_from, had_price=self._had_price,
        policy_learned=self._policy_learned,
        config=self.config.to_dict(),
        dataset=dict(num_classes=d.num_classes, channels=d.channels,
                     mean=list(map(float, d.mean)), std=list(map(float, d.std)),
                     class_names=list(d.class_names), target=d.target,
                     split=data.fingerprint(d)))

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
          preemption.GracefulStop(check_every=20) as stop):
      state, index, start = self._restore(ckpts)
      metrics = writer.MetricWriter(self.workdir, resume_step=int(state.step))
      with metrics:
        while index < len(config.phases):
          phase = config.phases[index]
          if int(state.step) == start:
            state = phase_start.enter(self, state, phase, self._had_price)
          state = self._run_phase(state, phase, start, ckpts, metrics, stop)
          if state is None:
            self.stopped_by = stop.signum
            return None
          start, index = int(state.step), index + 1
      return state

  def _restore(self, ckpts):
    """Returns (state, index of its phase, step at which that phase began)."""
    config = self.config
    latest = ckpts.latest()
    if latest is None:
      if config.init.workdir:
        state = self._restore_params()
      else:
        state = state_lib.init_state(self.system, config.seed)
        if self._weights is not None:
          state = state.replace(params={**state.params, **self._weights})
          self._weights = None
          logging.info('initialised from %s', config.init.weights)
        state = self._replicate(state)
        logging.info('%s', parameter_overview.get_parameter_overview(
            {group: tree for group, tree in state.params.items()
             if not group.endswith('stats')}, include_stats=False))
      return state, 0, 0
    kind, step = latest
    info = ckpts.info(step, kind)
    info = {**info, 'config': run_lib.with_defaults(info['config'])}
    checks.same_run(info, config, self.workdir,
                    nets=self.system.nets is not None)
    checks.same_classes(info, self.dataset, self.workdir)
    checks.same_images(info, self.dataset, self.workdir)
    shapes = step_lib.abstract_state(
        self.system, info['phase'],
        teacher='teacher' in ckpts.groups(step, kind))
    state = ckpts.restore(
        mesh_lib.put_shapes(shapes, self.mesh), step, kind)
    logging.info('resumed from step %d, phase %s', step, info['phase'])
    self._began_from = info['began_from']
    self._had_price = info['had_price']
    self._policy_learned = info['policy_learned']
    index = list(config.phases).index(info['phase'])
    if info['finished']:
      # Only missing if the run was killed right after the best checkpoint.
      ckpts.save(step, state, info, pin=True)
      return state, index + 1, step
    return state, index, info['start']

  def _restore_params(self):
    """Returns the first state of a run that starts from another run."""
    init = self.config.init
    with run_lib.Run(init.workdir) as run:
      info, state = run_lib.reread(lambda: self._read(run))
    self._began_from = info['phase']
    self._had_price = history.has_price(info)
    logging.info('initialised from %s, step %d', init.workdir, state.step)
    self._policy_learned = history.policy_has_learned(info)
    state = state_lib.restart(state, self.config.seed)
    return state.replace(key=self._replicate(state.key))

  def _read(self, run):
    """Returns (info, `State`) of another run's checkpoint to start from."""
    init = self.config.init
    saved = run.find(phase=init.phase)
    info = saved.info
    if not init.phase:
      run.warn_of_unfinished()
    if not phases.PHASES[self.config.phases[0]].from_scratch:
      checks.same_classes(info, self.dataset, init.workdir)
    checks.same_holdout(info, self.config, self.dataset)
    self._check_order(info)
    checks.mask_goes_on(info, self.config)
    return info, run.state(saved, self.system, self.mesh)

  def policy_has_learned(self, phase):
    """Returns whether the policy is trained on the model at a phase's start."""
    names = list(self.config.phases)
    return history.learned_policy(
        names[:names.index(phase)], self._policy_learned)

  def _check_order(self, info):
    """Checks that another run's heads are not kept if the backbone changes."""
    exits = tuple(map(tuple, info['config']['model']['exits'] or ()))
    if self.system.model.exits and exits == self.system.model.exits:
      phases.check_order(
          self.system, [*history.so_far(info), *self.config.phases],
          f' of {self.config.init.workdir}')

  def _replicate(self, tree):
    return mesh_lib.replicate(tree, self.mesh)

  def _run_phase(self, state, phase, start, ckpts, metrics, stop):
    config, c = self.config, self.config[phase]
    end = start + c.steps
    first = int(state.step)
    step_fn = jax.jit(step_lib.make_step(self.system, phase, start),
                      donate_argnums=0,
                      out_shardings=mesh_lib.replicated(self.mesh))
    batches = data.train_batches(
        self.dataset.train, seed=config.seed + start, start_step=first - start,
        stop_step=c.steps, batch_size=c.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count())
    progress = writer.Progress(end, label=phase)
    recent = []
    try:
      for step, batch in enumerate(batches, first + 1):
        arrays = mesh_lib.shard_batch(
            (batch['image'], batch['label']), self.mesh)
        state, m = step_fn(state, *arrays)
        recent.append(m)
        last, stopping = step == end, stop.should_stop()
        validating = last or (step - start) % config.eval_every == 0
        scored = validating and phase == config.phases[-1]
        saving = (last or stopping or scored
                  or (step - start) % config.checkpoint_every == 0)
        if step % config.log_every == 0 or saving:
          rows = mesh_lib.fetch(recent)
          recent = []
          for i, row in enumerate(rows, step - len(rows) + 1):
            guards.check_finite(i, row)
          values = _mean(rows)
          metrics.write(step, {f'{phase}/{k}': v for k, v in values.items()})
          progress.update(step, step * c.batch_size, values)
        score = None
        if validating:
          score = self._validate(state, phase, step, metrics)
        if saving:
          metrics.sync()
          ckpts.save(step, state, self.info(phase, start, last), pin=last,
                     metric=score if scored else None)
        if stopping and not (last and phase == config.phases[-1]):
          ckpts.wait()
          logging.warning('stopped by a signal at step %d; the same command '
                          'resumes', step)
          return None
    finally:
      progress.close()
      batches.close()
    return state

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

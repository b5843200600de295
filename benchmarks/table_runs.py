"""Trains and evaluates the runs of a table, one of a row and a seed."""

import pathlib
import subprocess

import jax
from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import cost
from adavit_jax import data
from adavit_jax import models
from adavit_jax import progress as progress_lib
from adavit_jax.exits import calibrate
from adavit_jax.inference import every_exit
from adavit_jax.runs import checks
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.runtime import stopping
from adavit_jax.train import config as config_lib
from adavit_jax.train import phases
import run_recipes
import timing

_BATCH = 1000  # images in memory
_ROOT = pathlib.Path(__file__).parents[1]


def model_of(config):
  """Returns the model of a config, without its data."""
  return models.create(
      config.model.name, **config_lib.model_overrides(config))


def flops(model):
  """FLOPs of each stage alone as the model's paper counts them, [E].

  Where its paper has no count of its own, or exits are added: twice the MACs.
  """
  paper = None if model.exits else model.paper_flops()
  return (2 * np.asarray(cost.of(model).stages) if paper is None
          else np.asarray(paper))


def train(config, workdir, label):
  """Trains a run, or what is left of it.

  Args:
    config: its config.
    workdir: its directory.
    label: what lines of progress begin with.

  Raises:
    Stopped: if a signal stopped it; its argument is the signal.
    ValueError: as of `loop.Trainer`.
  """
  trainer = loop.Trainer(config, workdir, label=label)
  if trainer.train() is None:
    raise stopping.Stopped(trainer.stopped_by)


class Evaluated:
  """A classification run and its outputs at every exit, on the test images.

  Attributes:
    clf: as loaded; its rule is 'entropy' if it has several exits.
    info: of its checkpoint.
    step: of its checkpoint.
    correct: whether the prediction is right, bool [E, n].
    outputs: `every_exit.AtExits`; the confidence is minus the entropy in nats.
  """

  def __init__(self, workdir, data_dir=None):
    """Loads the newest checkpoint and runs all test images.

    Args:
      workdir: directory of the run.
      data_dir: replaces the config's `data.data_dir`.

    Raises:
      ValueError: if there is no such run, it is a regression, or the images
        are not those that it was trained on.
    """
    with saved_run.Run(workdir) as run:
      saved = run.find()
    self.info, self.step = saved.info, saved.step
    config = config_dict.ConfigDict(saved.info['config'])
    system = saved_run.system(saved.info)
    if system.target is not None:
      raise ValueError(f'{workdir} holds a regression, which has no accuracy')
    if data_dir is not None:
      config.data.data_dir = data_dir
    dataset = data.load(config.data, seed=config.seed)
    checks.same_classes(saved.info, dataset, workdir)
    checks.same_images(saved.info, dataset, workdir)
    self.clf = adavit_jax.load(
        workdir, rule='entropy' if system.staged else None)
    test = dataset.test
    progress = progress_lib.Progress(
        len(test), label='evaluation', quiet_s=10)
    parts = []
    for start in range(0, len(test), _BATCH):
      places = np.arange(start, min(start + _BATCH, len(test)))
      images = data.center(test.images(places), system.model.image_size)
      parts.append(_at_exits(self.clf, images))
      progress.update(int(places[-1]) + 1, int(places[-1]) + 1, {})
    progress.close()
    self.outputs = every_exit.AtExits(*(
        np.concatenate(x, axis=-1) for x in zip(*parts)))
    self.correct = self.outputs.prediction == test.labels

  @property
  def num_exits(self):
    return len(self.correct)

  def at(self, entropy):
    """Returns a row with one threshold for all exits, a dict for JSON.

    Args:
      entropy: in nats; an image leaves at the first exit whose entropy is below
        it. At 0 no image leaves early.

    Returns:
      entropy; accuracy in 0..1; mean macs of an image; paper_flops, its mean
      FLOPs as the paper counts them, None without such a count; shares of the
      images that leave at each exit, [E].
    """
    found = calibrate.evaluate(
        self.outputs.confidence, self.correct, self.outputs.macs, -entropy)
    return dict(
        entropy=float(entropy), accuracy=found.accuracy, macs=found.macs,
        paper_flops=self._paper_flops(found.shares),
        shares=found.shares.tolist())

  def exits(self):
    """Returns a row for each exit alone; its MACs exclude other added heads.

    Of added exits also layer, head and head_macs.
    """
    model, rows, heads = self.clf.system.model, [], 0
    macs = np.cumsum(self.outputs.macs.mean(-1, dtype=np.float64))
    for i, e in enumerate(self.clf.system.exits):
      row = dict(
          accuracy=float(self.correct[i].mean()), macs=float(macs[i] - heads),
          paper_flops=self._paper_flops(np.eye(self.num_exits)[i]))
      if e.head:
        row.update(layer=e.place, head=e.head,
                   head_macs=cost.head_macs(model, e))
        heads += row['head_macs']
      rows.append(row)
    return rows

  def _paper_flops(self, shares):
    system = self.clf.system
    # A paper's count covers the backbone's own exits and all layers.
    plain = not system.model.exits and (
        phases.decider(system.config, self.info['phase']) == 'all')
    paper = system.model.paper_flops() if plain else None
    return None if paper is None else cost.mean(paper, shares)


def result(workdir, recipe, schedule, run, data_dir=None):
  """Evaluates a finished run; returns its results as a dict for JSON.

  Args:
    workdir: directory of the run.
    recipe: `paper_tables.Recipe`.
    schedule: one of its schedules.
    run: name of the run.
    data_dir: replaces the config's `data.data_dir`.

  Raises:
    ValueError: as of `Evaluated`.
  """
  found = Evaluated(workdir, data_dir)
  config = config_dict.ConfigDict(found.info['config'])
  batch = config[config.phases[-1]].batch_size
  entropies = recipe.entropies if found.num_exits > 1 else ()
  return dict(
      format=1, recipe=recipe.name, schedule=schedule, run=run,
      seed=config.seed, exits=found.exits(),
      entropies=[found.at(entropy) for entropy in entropies],
      steps=found.step, batch_size=batch, num_test=found.correct.shape[1],
      fields=run_recipes.fields(config), commit=_commit(),
      jax=jax.__version__,
      device=f'{jax.device_count()} x {jax.devices()[0].device_kind}, '
             f'{timing.num_cores()} CPU cores')


def _commit():
  """The commit of this project, with -dirty if files differ; '' if unknown."""
  command = ['git', 'describe', '--always', '--dirty', '--exclude=*',
             '--abbrev=12']
  try:
    return subprocess.run(command, cwd=_ROOT, text=True, capture_output=True,
                          check=False).stdout.strip()
  except OSError:  # there is no git
    return ''


def _at_exits(clf, images):
  if clf.system.staged:
    return clf.at_exits(images)
  found = clf(images)
  return every_exit.AtExits(
      found.labels[None], np.zeros((1, len(images))), found.macs[None])

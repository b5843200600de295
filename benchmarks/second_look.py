"""What would a second decision, later in the model, gain at most?

  python benchmarks/second_look.py --workdir=runs/policy --budgets=0.28,0.4

The policy decides once, from what the first encoders tell. This fits the value
policy again with more inputs: the predictions of the model's own head after the
next encoders, had all of them run, which is more than a second decision would
know, and at no cost. If that gains little, a second decision cannot gain more.
Prints a row of Markdown for each budget and number of encoders: the accuracy on
the test images, the gain over the policy that decides once and its standard
error, and the interaction R².
"""

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from adavit_jax import data
from adavit_jax.evaluation import batched
from adavit_jax.evaluation import evaluator as evaluator_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import observation
from adavit_jax.policies import value as value_lib
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import saved_run
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a run with a '
                               'policy.', required=True)
_PHASE = flags.DEFINE_string('phase', 'warm_start', 'The end of this phase is '
                             'measured.')
_BUDGETS = flags.DEFINE_list('budgets', [], 'MACs over those of the dense '
                             "model. Default: the config's mac_target.")
_NUM = flags.DEFINE_integer('num', None, 'Training images of the fit. Default: '
                            "the config's num_value.")
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Data directory, if it '
                                'moved.')


def later_predictions(system, params, split, places, mesh, batch_size):
  """Difficulty features of the head after each encoder behind the policy.

  Args:
    system: `System`.
    params: groups.
    split: `Split`.
    places: indices of n images.
    mesh: from `mesh.make_mesh`.
    batch_size: images per batch.

  Returns:
    [n, L, K + 3]; the i-th is after i + 1 encoders.
  """
  num_layers = plan.num_layers(system.model)
  depths = [fixed.drop(num_layers, *(n - i - 1 for n in num_layers))
            for i in range(min(num_layers))]

  @jax.jit
  def run(images, labels, rows):
    images, folded = system.normalize(images), system.fold(params)
    z1 = system.before_policy(folded, images)
    logits = [system.classify(folded, z1, images, depth).total
              for depth in depths]
    return jnp.stack(list(map(observation.difficulty, logits)), 1)

  return batched.collect(split, run, mesh, batch_size, places)


def rows(tables, ratios, budgets):
  """Fits policies that see more and more, and yields a dict for each.

  Args:
    tables: of training and test images, each (observed [n, F], later
      [n, L, F'], success [n, C], correct [n, C]).
    ratios: MACs of each mask over those of the dense model, [C].
    budgets: MACs to meet on the test images.
  """
  first = {}
  for more in range(tables[0][1].shape[1] + 1):
    inputs = [np.concatenate([x, later[:, :more].reshape(len(x), -1)], -1)
              for x, later, *_ in tables]
    kernel, bias, _ = value_lib.fit(inputs[0], tables[0][2])
    predicted = inputs[1] @ kernel + bias
    success, correct = tables[1][2:]
    for budget in budgets:
      chosen = np.asarray(value_lib.best(
          predicted, ratios, value_lib.solve_price(predicted, ratios, budget)))
      right = correct[np.arange(len(chosen)), chosen].astype(float)
      gains = right - first.setdefault(budget, right)
      yield dict(
          budget=budget, more=more, accuracy=right.mean(),
          macs=ratios[chosen].mean(), gain=gains.mean(),
          error=gains.std() / len(gains) ** 0.5,
          r2=value_lib.interaction_r2(predicted, success))


def main(_):
  mesh = mesh_lib.make_mesh(1)
  with saved_run.Run(_WORKDIR.value) as run:
    saved = run.find(phase=_PHASE.value)
    system = saved_run.system(saved.info)
    state = run.state(saved, system, mesh)
  config = config_dict.ConfigDict(saved.info['config'])
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  dataset = data.load(config.data, seed=config.seed)
  params, size = state_lib.final_params(state), config.eval_batch_size
  masks = Actions(*params['value'].masks)
  evaluator = evaluator_lib.Evaluator(system, mesh, size)
  tables = []
  for split, num in ((dataset.train, _NUM.value or config.num_value),
                     (dataset.test, len(dataset.test))):
    places = evaluator_lib.evenly(split, num)
    observed, *results = evaluator.success(params, split, masks, places)
    tables.append((observed, later_predictions(
        system, params, split, places, mesh, size), *results))
  ratios = np.asarray(system.cost.ratio(masks))
  budgets = [float(x) for x in _BUDGETS.value] or [config.mac_target]
  print('| budget | encoders seen | accuracy, % | MACs | gain, points | '
        'interaction R² |\n|' + '---|' * 6)
  for row in rows(tables, ratios, budgets):
    print('| {budget} | {more} | {accuracy:.2%} | {macs:.3f} | {gain:+.2%} ± '
          '{error:.2%} | {r2:.3f} |'.format(**row).replace('%', ''),
          flush=True)


if __name__ == '__main__':
  orbax_manager.quiet_orbax()
  app.run(main)

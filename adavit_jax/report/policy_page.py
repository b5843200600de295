"""Shows the report of a run without exits: tables and pictures."""

from etils import epath
import jax

from adavit_jax.models import plan
from adavit_jax.report import page as page_lib
from adavit_jax.report import pictures
from adavit_jax.report import promised_row
from adavit_jax.report import table

_LABELS = (
    ('dense', 'dense'), ('adaptive', 'adaptive'),
    ('value', 'adaptive, by value'), ('promised', 'adaptive, promised risk'),
    ('adaptive_at_static', 'adaptive, at the MACs below'),
    ('static', 'static, best, tuned alike'),
    ('static_last', 'static, last k, tuned alike'), ('random', 'random'),
    ('shuffled', 'adaptive, shuffled'))


def show_rows(result, labels, name='report.html'):
  """Shows a report of one table, and writes it beside the run.

  Args:
    result: dict as in report.json.
    labels: pairs of a label and a key of the result.
    name: of the HTML file.
  """
  if jax.process_index() == 0:
    page = page_lib.of(result)
    page.table([(label, result[key]) for label, key in labels])
    page.write(epath.Path(result['workdir']) / name)


def show(result, outputs, trainer):
  """Shows a report on a policy, and writes it and its pictures beside the run.

  Args:
    result: dict as in report.json.
    outputs: `Outputs` of the policy on the test images.
    trainer: `loop.Trainer` of the run.
  """
  num_layers = plan.num_layers(trainer.system.model)
  path = lambda name: epath.Path(result['workdir']) / name
  page = page_lib.of(result)
  page.table([(label, result[key]) for key, label in _LABELS if key in result])
  page.text(table.format_policy(result['adaptive'], num_layers))
  pictures.accuracy_against_macs(result, path('accuracy_macs.png'))
  page.picture(path('accuracy_macs.png'), 'Accuracy against MACs')
  if 'promised' in result:
    promised_row.show(result['promised'], page)
  if 'ceiling' in result:
    _show_ceiling(result['ceiling'], page)
  one = result['one_set_of_weights']
  if one:
    labels = [('adaptive', 'adaptive'), ('static', 'static, best'),
              ('value', 'adaptive, by value'),
              ('static_at_value', 'static, best, at its MACs'),
              ('random', 'random'), ('shuffled', 'adaptive, shuffled')]
    labels = [(key, label) for key, label in labels if key in one]
    labels += [(key, f"policy {key[8]} of Table 1, {key[10:]} layers")
               for key in one if key.startswith('table_1')]
    labels.append(('stochastic', 'stochastic, fewer later layers'))
    page.heading('One set of weights, no tuning for the budget')
    page.table([('dense', result['dense'])]
               + [(label, one[key]) for key, label in labels])
    page.text(table.format_policy(one['adaptive'], num_layers))
  pictures.keep_rates(
      result['adaptive']['keep_rate'],
      plan.layer_encoders(trainer.system.model), path('keep_rate.png'))
  page.picture(path('keep_rate.png'), 'How many images run each layer')
  pictures.easy_and_hard(
      trainer.dataset.test, outputs.actions, trainer.dataset.class_names,
      outputs.prediction, path('easy_hard.png'))
  page.picture(path('easy_hard.png'),
               'Images with the fewest and the most layers')
  page.write(path('report.html'))


def _show_ceiling(ceiling, page):
  labels = dict(value='value policy', oracle='oracle',
                cheapest='cheapest right mask')
  page.heading('Every candidate mask on every test image')
  page.table([(label, ceiling[key]) for key, label in labels.items()],
             (table.ACCURACY, table.OF_DENSE))
  page.text(f'R² of the value policy on the interaction of images and masks: '
            f"{ceiling['interaction_r2']:.3f}")

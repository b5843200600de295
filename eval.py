"""Reports on a run: python eval.py --workdir=DIR

Prints a table and writes DIR/report.json and pictures. After a policy: dense
and adaptive side by side, with what random, shuffled and static choices reach
at the same MACs (keep_rate.png, accuracy_macs.png, easy_hard.png). Of a model
with exits: each exit alone and the cascade, with its accuracy over all budgets
(exits.png). After a dense or static phase: what the model reaches.
"""

import json

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax

from adavit_jax import report
from adavit_jax.exits import confidence
from adavit_jax.runs import checkpoints
from adavit_jax.train import guards

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a run.',
                               required=True)
_THRESHOLD = flags.DEFINE_list(
    'threshold', None, 'Threshold of the policy, 0 to 1: higher drops more; or '
    'of the confidence, for all exits or one for each but the last: higher '
    'lets fewer images leave (entropy is negated: -0.05 for 0.05). Default: '
    "calibrated on held-out data to the config's mac_target.")
_MAC_TARGET = flags.DEFINE_float(
    'mac_target', None, "MACs to calibrate thresholds and to choose static "
    "sub-networks for, a share of the dense model's. Default: the config's.")
_RULE = flags.DEFINE_string(
    'rule', None, "When an image leaves, one of exits.confidence.RULES; by "
    "default the config's exits.rule.")
_BEST = flags.DEFINE_bool(
    'best', False, 'The best checkpoint of the last phase, not its end.')
_STATIC = flags.DEFINE_bool(
    'static', True, 'Also tunes static sub-networks, each as long as the joint '
    'phase; done once, under the work directory.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, "Where the data lies now, if not at the config's place.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    result = report.evaluate(
        _WORKDIR.value, best=_BEST.value, static=_STATIC.value,
        threshold=confidence.parse_thresholds(_THRESHOLD.value),
        data_dir=_DATA_DIR.value, rule=_RULE.value,
        mac_target=_MAC_TARGET.value)
    if result is None:
      raise SystemExit('stopped by a signal; the same command goes on')
    pictures = not {'adaptive', 'exits'}.isdisjoint(result)
    if jax.process_index() == 0:
      path = epath.Path(_WORKDIR.value) / 'report.json'
      path.write_text(json.dumps(result, indent=1))
      print(f'\nwrote {path}' + (' and pictures beside it' if pictures else ''))
  except guards.USER_ERRORS as error:
    logging.debug('where it came from', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  checkpoints.quiet_orbax()
  app.run(main)

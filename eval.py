"""Reports on a run: python eval.py --workdir=DIR

Prints a table and writes DIR/report.json, report.html (tables and pictures in
one file) and the pictures. For a policy, it compares dense and adaptive with
random, shuffled and static choices at the same MACs (keep_rate.png,
accuracy_macs.png, easy_hard.png). For a model with exits, it reports each exit
alone and the cascade, with its accuracy over all budgets (exits.png). After a
dense or static phase, it reports accuracy and MACs. With --actions, it compares
these layers with all layers, in report_actions.json and .html.
"""

import json

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax

from adavit_jax import errors
from adavit_jax import paths
from adavit_jax import report
from adavit_jax.exits import confidence
from adavit_jax.report import promised_row
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import peers
from adavit_jax.runs import saved_run
from adavit_jax.train import mesh as mesh_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a run.',
                               required=True)
_THRESHOLD = flags.DEFINE_list(
    'threshold', None, 'Threshold of the policy, between 0 and 1: higher drops '
    'more layers. For a model with exits: confidence threshold, one for all '
    'exits or one for each except the last; higher lets fewer images leave '
    '(entropy is negated: -0.05 for 0.05). Default: calibrated on held-out '
    "images to the config's mac_target.")
_MAC_TARGET = flags.DEFINE_float(
    'mac_target', None, "MACs, as a fraction of the dense model's, to which "
    'thresholds are calibrated and for which static sub-networks are chosen. '
    "Default: the config's.")
_SLACK = flags.DEFINE_float(
    'slack', None, 'Accuracy that a cascade may lose against the last exit, as '
    "a share of the images or the unit of a regression, for the row 'slack'. "
    "Default: the config's exits.slack.")
_RULE = flags.DEFINE_string(
    'rule', None, 'Confidence rule of a model with exits, one of '
    "exits.confidence.RULES. Default: the config's exits.rule.")
_CURVE = flags.DEFINE_string(
    'curve', None, "How the curve of a model with exits finds its thresholds: "
    "'best', those of the highest accuracy, or 'shares', those that let shares "
    "of the images leave, as DVT's paper. Default: best.")
_RISK = flags.DEFINE_float(
    'risk', None, 'Also find the cheapest thresholds whose expected loss '
    'against the full model is at most this, from held-out images: a share of '
    'the images, or the unit of a regression.')
_CONFIDENCE = flags.DEFINE_float(
    'confidence', 0.95, 'Probability of that promise.')
_RISK_KIND = flags.DEFINE_string(
    'risk_kind', None, "The loss of --risk: 'harm', 'gap' or 'disagreement', "
    "for a regression 'error' or 'disagreement'; see adavit_jax.calibrate. "
    'Default: harm or error.')
_BEST = flags.DEFINE_bool(
    'best', False, 'Use the best checkpoint of the last phase, not its last.')
_DECIDE = flags.DEFINE_string(
    'decide', None, "What chooses the layers: 'networks', the two policy "
    "networks, or 'value', the value policy. Default: the config's "
    'nets.decide.')
_PRICE = flags.DEFINE_float(
    'price', None, 'Price of MACs of the value policy: higher drops more '
    'layers. Default: calibrated as the threshold.')
_CEILING = flags.DEFINE_bool(
    'ceiling', False, 'Also run every candidate mask on every test image, to '
    'show what a better choice of layers could gain at most.')
_STATIC = flags.DEFINE_bool(
    'static', True, 'Also tune static sub-networks, each for as many steps as '
    'the joint phase; done once, in the work directory.')
_ACTIONS = flags.DEFINE_string(
    'actions', None, 'Layers for every image, instead of the learned policy: 1 '
    'to 5 for a policy of Table 1 of the patent, a mask of digits 0 and 1, MSA '
    'then MLP layers, or stochastic:FINAL, the survival probability of the '
    'last layer.')
_MODEL = flags.DEFINE_list(
    'model', [], 'Attributes of the model that may change after training, as '
    'NAME=VALUE: merge=8 or keep_ratio=0.7. Static sub-networks are not tuned '
    'then.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Run on all hosts of a pod or cluster.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Data directory, if it moved.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    if _DISTRIBUTED.value:
      mesh_lib.join_cluster()
    with peers.watched():
      result = report.evaluate(
          _WORKDIR.value, best=_BEST.value, static=_STATIC.value,
          threshold=confidence.parse_thresholds(_THRESHOLD.value),
          data_dir=_DATA_DIR.value, rule=_RULE.value,
          mac_target=_MAC_TARGET.value, slack=_SLACK.value,
          curve=_CURVE.value,
          attributes=saved_run.parse_attributes(_MODEL.value),
          decide=_DECIDE.value, price=_PRICE.value, ceiling=_CEILING.value,
          actions=_ACTIONS.value, wanted=_wanted())
    if result is None:
      raise SystemExit('stopped by a signal; the same command resumes')
    if jax.process_index() == 0:
      name = 'report.json' if _ACTIONS.value is None else 'report_actions.json'
      path = epath.Path(_WORKDIR.value).expanduser() / name
      paths.write({path: json.dumps(result, indent=1)})
      print(f"\nwrote {path} and, to look at, {path.with_suffix('.html')}")
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error


def _wanted():
  if _RISK.value is None:
    for flag in (_CONFIDENCE, _RISK_KIND):
      if flag.present:
        raise ValueError(f'--{flag.name}={flag.value} needs --risk')
    return None
  return promised_row.Wanted(_RISK.value, _CONFIDENCE.value, _RISK_KIND.value)


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  orbax_manager.quiet_orbax()
  app.run(main)

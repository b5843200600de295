"""What a run is worth: tables, JSON and pictures."""

from adavit_jax.report.evaluate import evaluate as evaluate

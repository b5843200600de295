"""What a run is worth: tables, JSON and pictures."""

from adavit_jax.report.run_report import evaluate as evaluate

"""Reports on a run: tables, JSON and pictures."""

from adavit_jax.report.run_report import evaluate as evaluate

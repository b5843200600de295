"""Training: config, phases and their losses, optimizer and step.

The loop that runs them is in `adavit_jax.runs`.
"""

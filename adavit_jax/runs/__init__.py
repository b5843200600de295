"""Runs: start, check, train, save, stop, resume and open them."""

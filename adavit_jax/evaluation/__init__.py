"""Evaluation of a model on a split of the data."""

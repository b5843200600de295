"""Policies that choose which layers run: learned, fixed and stochastic."""

"""Policies that choose which layers run: learned, fixed and stochastic.

Also REINFORCE, the search of static masks and the calibrated threshold.
"""

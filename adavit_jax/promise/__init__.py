"""Thresholds with a promise: tests of recorded outputs, without models."""

"""Runs the tests on 8 CPU devices; this file is read before jax is."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tiny programs compile longer than they run.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
_FLAG = '--xla_force_host_platform_device_count'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}=8'

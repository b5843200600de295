"""Runs the tests on 8 CPU devices; this file is read before jax is."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tiny programs compile longer than they run.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# Files and the processes that tests start compile many of the same programs.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _CACHE = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
_FLAGS = {
    '--xla_force_host_platform_device_count': 8,
    '--xla_cpu_parallel_codegen_split_count': 1,  # a tenth of the time
    # It makes faster programs; without it, a sixth less time to compile.
    '--xla_disable_hlo_passes': 'tree_reduction_rewriter',
}
# Another XLA may not know this flag, and dies of those that it does not know.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS['--xla_cpu_use_fusion_emitters'] = 'false'  # half the time to compile
  for _kind in ('alias_scope', 'noalias', 'invariant_load'):
    # Of use to optimizations alone; a tenth of the time to compile.
    _FLAGS[f'--xla_llvm_enable_{_kind}_metadata'] = 'false'
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} {_flag}={_value}')
# Where in the code each operation stands is of no use to them.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
# By default, an eighth of the time goes into looking for garbage among all that
# JAX has traced.
gc.set_threshold(200_000, 50, 100)


@pytest.fixture(scope='session', autouse=True)
def shapes_without_initializers():
  """Flax compares shapes of parameters with the shapes that are asked for.

  Wherever it applies a module, it would trace the initializer of each parameter
  to learn that shape, a third of the time to trace a model.
  """
  from flax.core import scope
  traced = scope.Scope.param

  def param(self, name, init_fn, *args, **kwargs):
    if args and self.has_variable('params', name):
      value = self.get_variable('params', name)
      if getattr(value, 'shape', None) == args[0]:
        self.reserve(name, 'params')
        return value
    return traced(self, name, init_fn, *args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scope.Scope, 'param', param)
    yield


@pytest.fixture(scope='module', autouse=True)
def few_pass_sizes(request):
  """One size of the last pass of `compact`; each is compiled.

  The files that test the sizes have as many as users have.
  """
  with pytest.MonkeyPatch.context() as patch:
    if request.module.__name__ not in ('test_compact', 'test_modes'):
      patch.setattr('adavit_jax.runtime.compact._SIZES', 1)
      patch.setattr('adavit_jax.runtime.skipping._PREFIX_SIZES', 1)
    yield


# First and in this order, the longest before the others, so that no worker is
# left with one of them at the end; xdist keeps it under --no-loadscope-reorder.
_LONG = [f'test_{name}.py' for name in (
    'stranger', 'loop', 'modes', 'dvt', 'exits_training', 'multi_exit_training',
    'multihost', 'beginnings', 'load', 'multi_exit_policy', 'ravit', 'report',
    'models', 'multi_exit', 'classifier', 'any_backbone', 'export',
    'phase_losses', 'exit_heads', 'merging', 'safe_thresholds', 'phases',
    'mask_search', 'weights_streams', 'augment', 'levit', 'policies',
    'ravit_policy', 'teacher', 'cascade', 'dvt_reuse', 'combinations')]


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: _LONG.index(item.path.name)
             if item.path.name in _LONG else len(_LONG))
  gc.freeze()  # what is imported is never garbage

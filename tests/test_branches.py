"""Branches: which actions are theirs, who reads what, and what is added."""

import itertools

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Branch
from adavit_jax.models.backbone import Stack
from adavit_jax.runtime import branches
import jax.numpy as jnp
import numpy as np
import pytest
import tiny


def _kept(stack, actions):
  shape = np.shape(actions.msa)[:-1] + (stack.length,)
  return [np.asarray(a) > 0 for a in branches.per_branch(
      stack, actions, np.ones(shape))]


@pytest.mark.parametrize('array', [np.float32, np.bool_, jnp.int32])
@pytest.mark.parametrize('msa, want', [
    ([1, 0, 1], [1, 1, 0]), ([0, 0, 1], [1, 1, 0]), ([1, 0, 0], [0, 0, 0]),
    ([0, 0, 0], [0, 0, 0]), ([1, 1, 1], [1, 1, 0])])
def test_what_a_later_msa_layer_reads(array, msa, want):
  stack, = plan.segment(tiny.model(), 1, 4)
  rows = Actions(array([msa, [1, 1, 1]]), array([[1, 1, 1]] * 2))
  one = Actions(*(a[0] for a in rows))
  for xp in (np, jnp):
    for later in branches.read_later(stack, _kept(stack, one), 1, xp):
      np.testing.assert_array_equal(later, np.array(want, bool))
    for later in branches.read_later(stack, _kept(stack, rows), 1, xp):
      np.testing.assert_array_equal(later, np.array([want, [1, 1, 0]], bool))
    # Behind the stack all tokens are read.
    for later in branches.read_later(stack, _kept(stack, rows), None, xp):
      np.testing.assert_array_equal(later, np.ones((2, 3), bool))


@pytest.mark.parametrize('local', list(itertools.product((0, 1), repeat=3)))
def test_what_any_later_branch_reads(local):
  """By a loop: only what mixes tokens reads those behind the first."""
  stack = Stack('', 0, 4, tuple(
      Branch('mlp', None, 1, local=bool(here)) for here in local), None)
  kept = np.random.default_rng(0).integers(0, 2, (3, 50, 4)).astype(bool)
  got = np.stack(branches.read_later(stack, list(kept), 2))
  for image in range(50):
    order = [(row, i) for row in range(4) for i in range(3)]
    for n, (row, i) in enumerate(order):
      want = any(kept[j, image, later] and not local[j]
                 for later, j in order[n + 1:])
      assert got[i, image, row] == want


def test_actions_of_a_stack_and_of_its_branches():
  stack = Stack('', 0, 2, tuple(
      Branch(kind, None, 1) for kind in ('mlp', 'msa', '', 'mlp')), None)
  assert plan.num_branches(stack) == Actions(1, 2)
  actions = Actions(np.arange(5), 10 + np.arange(6))
  here, rest = branches.split(stack, actions)
  np.testing.assert_array_equal(here.msa, [0, 1])
  np.testing.assert_array_equal(here.mlp, [10, 11, 12, 13])
  np.testing.assert_array_equal(rest.msa, [2, 3, 4])
  np.testing.assert_array_equal(rest.mlp, [14, 15])
  # Encoder by encoder, in the order of the branches.
  for got, want in zip(branches.per_branch(stack, here, 'always'),
                       ([10, 12], [0, 1], 'always', [11, 13]), strict=True):
    np.testing.assert_array_equal(got, want)


def test_what_is_added():
  x = np.arange(12.).reshape(1, 4, 3)
  np.testing.assert_array_equal(branches.add(jnp.asarray(x), x), 2 * x)
  got = branches.add(jnp.asarray(x), x[:, :2])
  np.testing.assert_array_equal(got[:, :2], 2 * x[:, :2])
  np.testing.assert_array_equal(got[:, 2:], x[:, 2:])
  both = {'a': jnp.asarray(x), 'b': jnp.zeros((1, 2))}
  got = branches.add(both, {'b': jnp.ones((1, 2))})
  np.testing.assert_array_equal(got['a'], x)
  np.testing.assert_array_equal(got['b'], np.ones((1, 2)))

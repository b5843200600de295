"""RAViT's equations, and the program's own products."""

import math

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages as stages_lib
import jax
import jax.numpy as jnp
import numpy as np
import products
import pytest

CIFAR = 'ravit_cifar_patch4_32'
TINY_IMAGENET = 'ravit_tiny_imagenet_patch4_64'
IMAGENET = 'ravit_imagenet_patch16_224'


def test_equation_2_by_hand():
  encoder = lambda n, d: 2 * n * n * d + 12 * n * d * d
  assert models.create(CIFAR).paper_flops() == (
      2 * encoder(17, 128), 6 * encoder(65, 128))
  assert models.create('vit_tiny_patch16_224').paper_flops() is None


def test_equation_4_by_hand():
  spend = cost.Cost(
      always=140, encoders=0, msa=(), mlp=(), policy=0, stages=(10, 30, 100),
      layer_stages=Actions((), ()))
  np.testing.assert_array_equal(spend.exits, [10, 40, 140])
  want = (3 * 10 + 0 * 40 + 5 * 140) / 8
  for mean in (spend.mean, lambda left: cost.mean(spend.stages, left)):
    assert mean([3, 0, 5]) == want
    np.testing.assert_allclose(mean([3 / 8, 0, 5 / 8]), want, rtol=1e-15)


@pytest.mark.parametrize('left', [[1, 2], [0, 0, 0], 5])
def test_wrong_shares(left):
  with pytest.raises(ValueError, match='left=.* 3 exits'):
    cost.mean((1, 2, 3), left)


def _abstract(model):
  params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  s = model.image_size
  return params, jax.ShapeDtypeStruct((1, s, s, model.channels), jnp.float32)


@pytest.mark.parametrize('name, overrides', [
    pytest.param(CIFAR, dict(), marks=pytest.mark.nightly),
    (CIFAR, dict(channels=1, mlp_ratio=2., shared_stem=True)),
    pytest.param(IMAGENET, dict(), marks=pytest.mark.nightly),
    (IMAGENET, dict(layers=(0, 2, 0))),
])
def test_macs_are_the_programs_own(name, overrides):
  model = models.create(name, **overrides)
  params, images = _abstract(model)
  spend = cost.of(model)
  # For inference, the last encoder of a branch computes the CLS token alone.
  unread = [sum(encoder_lib.unread_macs(
      model.branch_tokens(i), 1, model.width, model.mlp_dim))
            for i in model.branches]
  for kwargs, want in (
      (dict(inference=False), spend.stages),
      (dict(), np.subtract(spend.stages, unread))):
    carry = None
    stages = stages_lib.stages(model, **kwargs)
    for stage, macs in zip(stages, want, strict=True):
      program, (carry, _) = jax.make_jaxpr(stage, return_shape=True)(
          params, images, carry)
      assert products.macs(program.jaxpr) == macs
  assert spend.dense == sum(spend.stages)
  program = jax.make_jaxpr(model.apply)({'params': params['backbone']}, images)
  assert products.macs(program.jaxpr) == spend.dense


@pytest.mark.parametrize('num_fixed', [0, 1, 2])
@pytest.mark.parametrize('seed', range(4))
def test_macs_under_actions_are_the_programs_own(num_fixed, seed):
  """Images are resized and embedded whatever is dropped."""
  model = models.create(CIFAR, num_fixed=num_fixed)
  num = 4 - num_fixed
  keep = np.random.default_rng(seed).integers(0, 2, (2, num)) * (seed > 0)
  actions = Actions(*keep)
  program = jax.make_jaxpr(lambda params, images: modes.forward(
      model, params, images, actions, mode='static').total)(*_abstract(model))
  # Counted, and not asked for: the first exit.
  early = model.own_exits()[0].macs
  assert products.macs(program.jaxpr) == (
      cost.of(model).adaptive(actions) - cost.left_out(model, actions) - early)


def test_layers_cost_what_their_branch_does():
  model = models.create(CIFAR, num_fixed=0)
  spend = cost.of(model)
  small, large = (
      encoder_lib.macs(n, 128, model.mlp_dim) for n in (17, 65))
  assert spend.msa == (small[0], *3 * [large[0]])
  assert spend.mlp == (small[1], *3 * [large[1]])
  assert spend.layer_stages == Actions((0, 1, 1, 1), (0, 1, 1, 1))
  actions = Actions(np.float32([0, 1, 0, 1]), np.float32([1, 0, 1, 1]))
  assert spend.adaptive(actions) == (
      spend.dense - small[0] - large[0] - large[1])
  assert spend.stage(0, actions) == spend.stages[0] - small[0]
  assert spend.stage(1, actions) == spend.stages[1] - large[0] - large[1]
  # The CLS token alone leaves the first branch too.
  small, large = (
      encoder_lib.unread_macs(n, 1, 128, model.mlp_dim) for n in (17, 65))
  ones = Actions(*np.ones((2, 4)))
  assert cost.left_out(model, ones) == sum(small) + sum(large)
  assert cost.left_out(model, actions) == small[1] + sum(large)


@pytest.mark.parametrize('num_fixed', [
    pytest.param(0, marks=pytest.mark.nightly),
    pytest.param(1, marks=pytest.mark.nightly), 2])
def test_policy_networks_of_a_ravit_are_the_programs_own(num_fixed):
  """With `head`, they see what the model says when it drops every layer."""
  model = models.create(CIFAR, num_fixed=num_fixed, exits=((3, 'mlp'),))
  nets = learned.PolicyNets(
      num_layers=plan.num_layers(model), num_classes=10, tokens='pooled',
      head=True, hidden=5)

  def build():
    key = jax.random.key(0)
    return {**models.init_params(model, key),
            **learned.init_params(nets, model, key)}

  def decide(params, z1, images):
    features = learned.observe(nets, model, params, z1, images)
    return learned.greedy(nets, params['policy'], features)

  _, images = _abstract(model)
  params = jax.eval_shape(build)
  z1 = jax.eval_shape(
      lambda p, x: modes.before_policy(model, p, x), params, images)
  spend = cost.of(model, nets)
  program = jax.make_jaxpr(decide)(params, z1, images)
  assert products.macs(program.jaxpr) == spend.policy

  plain, carry = cost.of(model), None
  more = np.subtract(spend.stages, plain.stages)
  asked = 0 if num_fixed == 0 else 1  # its place is behind the first exit
  np.testing.assert_array_equal(more, spend.policy * (np.arange(3) == asked))
  for stage, macs in zip(
      stages_lib.stages(model, decide=decide, mode='masked'), spend.stages,
      strict=True):
    program, (carry, _) = jax.make_jaxpr(stage, return_shape=True)(
        params, images, carry)
    got = products.macs(program.jaxpr)
    # Only under the policy, every encoder computes all tokens: before it, the
    # last of a branch computes the CLS token alone.
    undecided = not isinstance(carry, tuple)
    unread = sum(encoder_lib.unread_macs(17, 1, 128, 512)) * (
        undecided and num_fixed != 1)  # the policy reads all tokens
    assert got == macs - unread


@pytest.mark.parametrize('name, layers, more, more_first', [
    (CIFAR, (1, 3), 0.013, 0.051), (IMAGENET, (1, 1, 8), 0.017, 0.187)])
def test_how_far_the_paper_is_from_the_program(name, layers, more, more_first):
  model = models.create(name, layers=layers)
  ours, paper = cost.of(model), np.array(model.paper_flops()) / 2
  np.testing.assert_allclose(ours.dense / sum(paper) - 1, more, atol=5e-4)
  np.testing.assert_allclose(
      ours.stages[0] / paper[0] - 1, more_first, atol=5e-4)

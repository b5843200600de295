"""Four execution modes, one result."""

import functools

from adavit_jax.models.actions import Actions
from adavit_jax.runtime import compact
from adavit_jax.runtime import masked as masked_lib
from adavit_jax.runtime import modes
from adavit_jax.runtime import skipping
from adavit_jax.train import mesh as mesh_lib
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

L = 3
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module')
def model():
  return tiny.model(distillation=True)


@pytest.fixture(scope='module')
def params(model):
  return jax.tree.map(jnp.asarray, tiny.params(model))


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(0), (4, 8, 8, 1))


@pytest.fixture(scope='module')
def z1(model, params, images):
  return jax.jit(functools.partial(modes.before_policy, model))(params, images)


@pytest.fixture(scope='module')
def run(model):
  """The modes whose actions may be traced, each compiled once per shape."""
  def jit(mode):
    return jax.jit(lambda p, z1, actions: modes.after_policy(
        model, p, z1, actions, mode).total)
  return {mode: jit(mode) for mode in ('masked', 'cond', 'compact')}


def _random(seed, *shape, num=L):
  keep = np.random.default_rng(seed).integers(0, 2, (*shape, 2 * num))
  return Actions.from_keep(keep.astype(np.float32), (num, num))


def _tokens(model, size):
  return np.random.default_rng(size).normal(
      size=(size, model.num_tokens, model.width)).astype(np.float32)


def _row(actions, i):
  return Actions(*(a[i:i + 1] for a in actions))


def _masked(model, params, x, actions, **kwargs):
  """`masked.run` behind the policy: all tokens."""
  return masked_lib.run(
      model, params, x, None, actions, start=model.num_fixed, **kwargs).x


def _skipping(mode, model, params, x, actions, **kwargs):
  """`skipping.run` behind the policy: all tokens, or those that are read."""
  return skipping.run(
      model, params, x, None, actions, mode, start=model.num_fixed, **kwargs)


def test_modes_agree_on_actions_per_image(model, params, z1, run):
  actions = _random(0, 4)
  want = run['masked'](params, z1, actions)
  # Else equality below would say nothing.
  assert np.abs(want - run['masked'](params, z1, _random(1, 4))).max() > 0.1
  np.testing.assert_allclose(
      run['compact'](params, z1, actions), want, **CLOSE)
  for i in range(4):
    got = run['cond'](params, z1[i:i + 1], _row(actions, i))
    np.testing.assert_allclose(got, want[i:i + 1], **CLOSE)
  shared = Actions(*(a[0] for a in actions))
  static = jax.jit(lambda p, z1: modes.after_policy(
      model, p, z1, shared, 'static').total)
  np.testing.assert_allclose(static(params, z1)[0], want[0], **CLOSE)


@pytest.mark.parametrize('size', [
    pytest.param(1, marks=pytest.mark.nightly), 4])
def test_modes_agree_on_shared_actions(model, params, run, size):
  z1, actions = _tokens(model, size), _random(size)
  per_image = Actions(*(np.tile(a, (size, 1)) for a in actions))
  want = run['masked'](params, z1, per_image)
  static = jax.jit(lambda p, z1: modes.after_policy(
      model, p, z1, actions, 'static').total)(params, z1)
  for got in (run['cond'](params, z1, actions), static,
              run['compact'](params, z1, per_image)):
    np.testing.assert_allclose(got, want, **CLOSE)
  # Not shared, in the same program: passes of the library's own size.
  actions = _random(size + 1, size)
  np.testing.assert_allclose(run['compact'](params, z1, actions),
                             run['masked'](params, z1, actions), **CLOSE)


@pytest.mark.nightly
@pytest.mark.parametrize('sizes', [(1, 3), (2, 7, 8, 9, 33)])
def test_compact_agrees_with_masked_at_every_batch_size(model, params, sizes):
  """Batches of up to 33 images, each size a program of its own.

  `masked` treats every image alone, so that rows of its batch of 33 are what
  smaller batches are compared with. Passes of 1 image compile fastest; other
  passes are tested at a few sizes here, all sizes in test_compact.
  """
  z1 = _tokens(model, 33)
  masked = jax.jit(lambda *args: _masked(model, *args)[:, :2])
  packed = jax.jit(lambda *args: _skipping(
      'compact', model, *args, chunk=1, read=2)[:, :2])
  for size in sizes:
    actions = _random(size, 33)
    want = np.asarray(masked(params, z1, actions))[:size]
    got = packed(params, z1[:size], Actions(*(a[:size] for a in actions)))
    np.testing.assert_allclose(got, want, **CLOSE)


def test_forward_of_all_layers_is_the_plain_vit(model, params, images):
  want = jax.jit(lambda p, x: model.apply(
      {'params': p['backbone']}, x))(params, images)
  for ones in (Actions(np.ones(L), np.ones(L)), None):
    got = jax.jit(lambda p, x: modes.forward(model, p, x, ones))(params, images)
    np.testing.assert_allclose(got.cls, want.cls, **CLOSE)
    np.testing.assert_allclose(got.dist, want.dist, **CLOSE)


@pytest.fixture(scope='module')
def deep():
  """Model, parameters and images; how many encoders are fixed is free."""
  model = tiny.model(depth=5, distillation=True)
  images = jax.random.normal(jax.random.key(5), (3, 8, 8, 1))
  return model, jax.tree.map(jnp.asarray, tiny.params(model)), images


@pytest.mark.parametrize('num_fixed, packed', [
    (2, False), *(pytest.param(num_fixed, True, marks=pytest.mark.nightly)
                  for num_fixed in (1, 2, 3))])
def test_one_tree_serves_every_number_of_fixed_encoders(
    deep, num_fixed, packed):
  plain, params, images = deep
  model = plain.clone(num_fixed=num_fixed)
  dense = jax.jit(lambda p, x: modes.forward(model, p, x))(params, images)
  want = jax.jit(plain.apply)({'params': params['backbone']}, images)
  np.testing.assert_allclose(dense.cls, want.cls, **CLOSE)
  np.testing.assert_allclose(dense.dist, want.dist, **CLOSE)

  # Branches of the fixed encoders have no actions; all others have.
  num = 5 - num_fixed
  actions = _random(10 + num_fixed, 3, num=num)
  gates = np.ones((2, 3, 5), np.float32)
  gates[:, :, num_fixed:] = actions
  want = jax.jit(lambda p, x, gates: modes.classify(plain, p, masked_lib.run(
      plain, p, modes.embed(plain, p, x).x, None, gates).x).total)(
          params, images, Actions(*gates))
  assert np.abs(want - dense.total).max() > 0.1
  run = jax.jit(lambda p, x, actions, mode: modes.forward(
      model, p, x, actions, mode=mode).total, static_argnames='mode')
  np.testing.assert_allclose(
      run(params, images, actions, 'masked'), want, **CLOSE)
  if not packed:
    return
  np.testing.assert_allclose(
      run(params, images, actions, 'compact'), want, **CLOSE)
  for i in range(3):
    got = run(params, images[i:i + 1], _row(actions, i), 'cond')
    np.testing.assert_allclose(got[0], want[i], **CLOSE)
  shared = Actions(*(a[0] for a in actions))
  static = jax.jit(lambda p, x: modes.forward(
      model, p, x, shared, mode='static').total)
  np.testing.assert_allclose(static(params, images)[0], want[0], **CLOSE)


def test_without_adaptive_layers_the_heads_read_z1(model, params, z1, run):
  zeros = Actions(np.zeros(L, np.float32), np.zeros(L, np.float32))
  want, got = jax.jit(lambda p, z1: (
      modes.classify(model, p, z1[:, :2]).total,
      modes.without_layers(model, p, z1).total))(params, z1)
  np.testing.assert_allclose(got, want, **CLOSE)
  np.testing.assert_allclose(run['cond'](params, z1, zeros), want, **CLOSE)
  zeros = Actions(*(np.zeros((4, L), np.float32),) * 2)
  for mode in ('masked', 'compact'):
    np.testing.assert_allclose(run[mode](params, z1, zeros), want, **CLOSE)


def test_gates_scale_a_branch(model, params, z1):
  """Stochastic depth's 1 / survival: by hand for one branch."""
  gates = Actions(np.zeros((4, L), np.float32), np.zeros((4, L), np.float32))
  gates.msa[:, 1] = 2.5

  @jax.jit
  def run(params, z1):
    p = jax.tree.map(lambda leaf: leaf[model.num_fixed + 1],
                     params['backbone']['encoders'])
    return (model.encoder.apply({'params': p}, z1, method='msa'),
            masked_lib.run(model, params, z1, None, gates,
                           start=model.num_fixed, firsts=2))

  branch, (x, stats, prefix) = run(params, z1)
  assert stats is None and prefix.shape == (L, 4, 2, model.width)
  np.testing.assert_allclose(x, z1 + 2.5 * branch, **CLOSE)
  np.testing.assert_array_equal(prefix[0], z1[:, :2])
  np.testing.assert_array_equal(prefix[1], x[:, :2])


def test_modes_skip_at_run_time_and_masked_does_not(params, z1, run):
  def conditionals(mode, z1, actions):
    text = run[mode].lower(params, z1, actions).compile().as_text()
    return text.count(' conditional(')
  # One body for all layers: an MSA and an MLP branch.
  assert conditionals('cond', z1, _random(0)) == 2
  assert conditionals('cond', z1[:1], _random(0, 1)) == 2
  # A choice between sizes for each: all tokens of them, and prefix tokens.
  assert conditionals('compact', z1, _random(0, 4)) == 4
  assert conditionals('masked', z1, _random(0, 4)) == 0


@pytest.mark.parametrize('chunk', [
    pytest.param(4, marks=pytest.mark.nightly), 8])
def test_compact_compiles_an_encoder_once_per_size(model, params, chunk):
  """Matrix products of the whole program: fixed by the sizes, not by L."""
  z1 = jax.ShapeDtypeStruct((8, model.num_tokens, model.width), jnp.float32)
  actions = jax.tree.map(lambda a: jax.ShapeDtypeStruct((8, L), a.dtype),
                         _random(0))
  compiled = jax.jit(lambda *args: modes.after_policy(
      model, *args, 'compact', chunk=chunk).total)
  text = compiled.lower(params, z1, actions).as_text(dialect='hlo')
  # A whole pass and the last ones; for prefix tokens q apart from k and v, and
  # all MLP rows at once.
  sizes, prefix, rows = (
      1 + len(compact.pass_sizes(*args))
      for args in ((chunk,), (chunk, 2), (8, 2)))
  heads = 2
  assert text.count(' dot(') == (
      sizes * (4 + 2) + prefix * 5 + rows * 2 + heads)


def test_static_leaves_dropped_layers_out(model, params, z1):
  def products(actions):
    forward = lambda p, z1: modes.after_policy(model, p, z1, actions, 'static')
    text = jax.jit(forward).lower(params, z1).as_text(dialect='hlo')
    return text.count(' dot(')
  ones, zeros = np.ones(L), np.zeros(L)
  heads, last = 2, 1  # the last MSA layer has q apart from k and v
  assert products(Actions(ones, ones)) == L * (4 + 2) + last + heads
  assert products(Actions(ones, zeros)) == L * 4 + last + heads
  assert products(Actions(zeros, ones)) == L * 2 + heads
  assert products(Actions(zeros, zeros)) == heads


@pytest.mark.parametrize('mode', ['cond', 'compact'])
def test_tokens_that_nobody_reads_are_left_as_they_are(
    model, params, z1, mode):
  run = jax.jit(functools.partial(_skipping, mode, model),
                static_argnames='read')
  # The last MSA layer is the second; before it, only an MLP layer.
  actions = Actions(np.float32([0, 1, 0]), np.float32([1, 1, 1]))
  before = run(params, z1, Actions(np.zeros(L), np.float32([1, 0, 0])))
  want = jax.jit(functools.partial(_masked, model))(params, z1, actions)
  got = run(params, z1, actions, read=2)
  np.testing.assert_allclose(got[:, :2], want[:, :2], **CLOSE)
  np.testing.assert_allclose(got[:, 2:], before[:, 2:], **CLOSE)
  assert np.abs(before - want)[:, 2:].max() > 0.1
  np.testing.assert_allclose(run(params, z1, actions), want, **CLOSE)


def test_static_returns_the_tokens_that_are_read(model, params, z1):
  actions = Actions(np.float32([0, 1, 0]), np.float32([1, 1, 1]))
  want, first, every = jax.jit(lambda *args: (
      _masked(model, *args, actions),
      _skipping('static', model, *args, actions, read=2),
      _skipping('static', model, *args, actions)))(params, z1)
  np.testing.assert_allclose(first, want[:, :2], **CLOSE)
  np.testing.assert_allclose(every, want, **CLOSE)


def _value_and_grad(model, **kwargs):
  def loss(params, z1, actions):
    x = _masked(model, params, z1, actions, **kwargs)
    return (x ** 2).mean(), x
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope='module')
def plain_grad(model):
  return _value_and_grad(model)


def test_dropped_branches_have_no_gradient(params, z1, plain_grad):
  keep_msa, keep_mlp = np.float32([1, 0, 1]), np.float32([0, 1, 1])
  actions = Actions(np.tile(keep_msa, (4, 1)), np.tile(keep_mlp, (4, 1)))
  _, grads = plain_grad(params, z1, actions)
  biggest = lambda leaf: np.abs(leaf).reshape(1 + L, -1).max(1)
  for keep, names in ((keep_msa, ('norm1', 'qkv', 'proj')),
                      (keep_mlp, ('norm2', 'fc1', 'fc2'))):
    for name in names:
      for leaf in grads['backbone']['encoders'][name].values():
        # The fixed encoder lies before z1.
        np.testing.assert_array_equal(biggest(leaf) > 0, [0, *keep], name)


def test_remat_and_unrolling_change_nothing(model, params, z1, plain_grad):
  actions = _random(0, 4)
  want = plain_grad(params, z1, actions)
  got = _value_and_grad(model, remat=True, unroll=L)(params, z1, actions)
  chex.assert_trees_all_close(got, want, **CLOSE)


@pytest.mark.parametrize('mode', sorted(modes.MODES))
def test_actions_are_for_the_images_and_encoders_given(
    model, params, z1, mode):
  """In every mode, before it computes: none broadcasts or takes a row."""
  def wrong(x, msa, mlp):
    with pytest.raises(ValueError, match=f'actions .*{len(x)} images'):
      modes.after_policy(model, params, x,
                     Actions(np.ones(msa), np.ones(mlp)), mode)

  wrong(z1[:1], (4, L), (4, L))
  wrong(z1, (1, L), (1, L))
  wrong(z1, (L,), (4, L))
  wrong(z1, (L,), (L + 1,))
  wrong(z1, (L - 1,), (L + 1,))


@pytest.mark.parametrize('mode', [
    pytest.param('cond', marks=pytest.mark.nightly),
    pytest.param('compact', marks=pytest.mark.nightly), 'masked', 'static'])
def test_lists_are_actions_too(model, params, z1, run, mode):
  lists = Actions([1, 0, 1], [0, True, 1])
  rows = Actions(*(np.tile(np.float32(a), (2, 1)) for a in lists))
  got = jax.jit(lambda p, z1: modes.after_policy(
      model, p, z1, lists, mode).total)(params, z1[:2])
  np.testing.assert_allclose(got, run['masked'](params, z1[:2], rows), **CLOSE)


@pytest.mark.parametrize('mode', ['static', 'cond', 'compact'])
def test_only_masked_takes_other_numbers_than_0_and_1(model, params, z1, mode):
  for wrong in (-1., .5, 2.):
    actions = Actions(np.float32([1, 0, wrong]), np.float32([0, 1, 1]))
    with pytest.raises(ValueError, match=f"action is {wrong}.*'masked'"):
      modes.after_policy(model, params, z1, actions, mode)
    modes.after_policy(model, params, z1, actions, 'masked')


def test_wrong_calls(model, params, z1):
  with pytest.raises(ValueError, match='mode .*dens'):
    modes.forward(model, params, np.zeros((1, 8, 8, 1)), mode='dens')
  with pytest.raises(ValueError, match='actions.*<U1'):
    modes.after_policy(
        model, params, z1, Actions(['1'] * L, ['0'] * L), 'masked')
  with pytest.raises(ValueError, match='images.*uint8.*normalized'):
    modes.forward(model, params, np.zeros((1, 8, 8, 1), np.uint8), _random(0))
  for run in (lambda x: model.apply({'params': params['backbone']}, x),
              lambda x: modes.forward(model, params, x)):
    with pytest.raises(ValueError, match='images.*int32.*normalized'):
      run(jnp.zeros((1, 8, 8, 1), jnp.int32))
  with pytest.raises(ValueError, match=r'images.*list.*\[B, 8, 8, 1\]'):
    modes.forward(model, params, [[[[0.]]]], _random(0))
  for chunk in (0, -1, 2.):
    with pytest.raises(ValueError, match=f'chunk={chunk}'):
      modes.after_policy(model, params, z1, _random(0), 'compact', chunk=chunk)
  with pytest.raises(ValueError, match="mode 'fast'.*'static'"):
    modes.after_policy(model, params, z1, _random(0), 'fast')
  with pytest.raises(ValueError, match="mode='cond'.*4 images.*'compact'"):
    modes.after_policy(model, params, z1, _random(0, 4), 'cond')
  with pytest.raises(ValueError, match=r"mode='cond'.*\(4, 3\) for 1 images"):
    _skipping('cond', model, params, z1[:1], _random(0, 4))
  with pytest.raises(ValueError, match="mode='static'.*concrete"):
    modes.after_policy(model, params, z1, _random(0, 4), 'static')
  with pytest.raises(ValueError, match="mode='static'.*concrete"):
    jax.eval_shape(lambda a: modes.after_policy(model, params, z1, a, 'static'),
                   _random(0))


@pytest.mark.parametrize('chunk, read', [
    (3, 2), pytest.param(8, 2, marks=pytest.mark.nightly),
    pytest.param(8, None, marks=pytest.mark.nightly)])
def test_passes_of_any_size_agree_with_masked(model, params, chunk, read):
  """Every number of images in a batch that is padded to 33 and their actions.

  What stands in for an image keeps nothing, as in `Classifier`.
  """
  z1 = jax.random.normal(
      jax.random.key(3), (33, model.num_tokens, model.width))
  packed = jax.jit(lambda *args: _skipping(
      'compact', model, *args, chunk=chunk, read=read)[:, :read])
  masked = jax.jit(lambda *args: _masked(model, *args)[:, :read])
  for size in range(34):
    actions = Actions(*(a * (np.arange(33) < size)[:, None]
                        for a in _random(size, 33)))
    np.testing.assert_allclose(packed(params, z1, actions),
                               masked(params, z1, actions), **CLOSE)
  ones = Actions(*[np.ones((33, L), np.float32)] * 2)
  np.testing.assert_allclose(packed(params, z1, ones),
                             masked(params, z1, ones), **CLOSE)


def test_modes_agree_in_bfloat16(params):
  model = tiny.model(distillation=True, dtype='bfloat16')
  z1 = jax.random.normal(
      jax.random.key(4), (6, model.num_tokens, model.width), jnp.bfloat16)
  actions = _random(4, 6)
  got, want = jax.jit(lambda *args: (
      _skipping('compact', model, *args, chunk=2, read=2)[:, :2],
      _masked(model, *args)[:, :2]))(params, z1, actions)
  assert got.dtype == jnp.bfloat16
  # Both are rounded to 8 bits after every branch, in another order of sums.
  got, want = (np.asarray(x, np.float32) for x in (got, want))
  assert np.abs(got - want).max() < 0.05 * want.std()


@pytest.mark.parametrize('dtype', [
    bool, pytest.param(np.int32, marks=pytest.mark.nightly),
    pytest.param(np.float32, marks=pytest.mark.nightly)])
@pytest.mark.parametrize('mode', sorted(modes.MODES))
def test_no_types_or_ranks_are_promoted(
    model, params, images, z1, run, mode, dtype):
  keep = np.array([1, 0, 1], dtype)
  actions = Actions(keep, ~keep.astype(bool))
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    forward = lambda params, images, actions: modes.forward(
        model, params, images, actions, mode=mode).total
    if mode == 'compact' and dtype is bool:  # compiles for long
      jax.eval_shape(forward, params, images, actions)
      return
    if mode == 'static':
      got = jax.jit(lambda p, x: forward(p, x, actions))(params, images)
    else:
      got = jax.jit(forward)(params, images, actions)
  want = run['masked'](params, z1, Actions(*(
      np.float32(a) for a in actions)))
  np.testing.assert_allclose(got, want, **CLOSE)


def test_compact_packs_on_each_device_under_shard_map(model, params):
  mesh = mesh_lib.make_mesh(8)
  z1 = jax.random.normal(
      jax.random.key(2), (16, model.num_tokens, model.width))
  actions = _random(2, 16)
  rows = jax.P(mesh_lib.AXES)
  packed = jax.jit(jax.shard_map(
      lambda p, x, a: _skipping(
          'compact', model, p, x, a, read=2, chunk=1)[:, :2], mesh=mesh,
      in_specs=(jax.P(), rows, rows), out_specs=rows))
  want = jax.jit(lambda *args: _masked(model, *args)[:, :2])(
      params, z1, actions)
  packed = packed.lower(params, z1, actions).compile()
  np.testing.assert_allclose(packed(params, z1, actions), want, **CLOSE)
  assert 'all-gather' not in packed.as_text()

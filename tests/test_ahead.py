"""The arithmetic of --compile_for: chips, collectives, FLOPs, bytes."""

import json
import types

from adavit_jax import data
from adavit_jax.ahead import chips
from adavit_jax.ahead import collectives
from adavit_jax.ahead import compile_for
from adavit_jax.ahead import flops
from adavit_jax.ahead import forecast
from adavit_jax.ahead import forecast_table
from adavit_jax.ahead import targets
from adavit_jax.train import mesh as mesh_lib
import jax
from jax.experimental import topologies
import jax.numpy as jnp
import pytest
import tiny


@pytest.mark.parametrize('text, num_chips, num_devices, tflops', [
    ('v3:4x4', 16, 32, 123), ('v4:2x2x4', 16, 16, 275),
    ('v5e:16x16', 256, 256, 197), ('v5p:4x4x8', 128, 128, 459),
    ('v6e:2x4', 8, 8, 918)])
def test_chips_and_devices_of_a_slice(text, num_chips, num_devices, tflops):
  found = chips.parse(text)
  assert (found.chips, found.devices) == (num_chips, num_devices)
  assert chips.CHIPS[found.kind].tflops == tflops


@pytest.mark.parametrize('text, words', [
    ('v9:4x4', 'v9:4x4 is unknown.*v5e'), ('v5e', 'v5e is unknown'),
    ('h100:8', "h100:8 is unknown.*'here'.*GPUs"),
    ('v4:4x4', 'v4 has 3 axes.*v4:2x2x4'), ('v5e:2x2x4', 'v5e has 2 axes')])
def test_unknown_slices(text, words):
  with pytest.raises(ValueError, match=words):
    chips.parse(text)


def test_gpus_by_name():
  assert chips.gpu_tflops('NVIDIA H100 80GB HBM3') == 989
  assert chips.gpu_tflops('NVIDIA H100 PCIe') == 756
  assert chips.gpu_tflops('cpu') is None


def test_a_sentence_where_libtpu_is_missing(monkeypatch):
  def missing(**_):
    raise RuntimeError('JAX TPU support not installed; cannot generate')
  monkeypatch.setattr(topologies, 'get_topology_desc', missing)
  with pytest.raises(ValueError, match=r'--compile_for=v5e:4x4 .*\[tpu\]'):
    targets.find('v5e:4x4')


def test_cores_are_not_taken_for_chips(monkeypatch):
  asked = []
  def found(**options):
    asked.append(options)
    return types.SimpleNamespace(devices=[None] * 16)
  monkeypatch.setattr(topologies, 'get_topology_desc', found)
  assert targets.find('v4:2x2x4').per_chip == 1
  assert asked[0]['chip_config_name'] == 'megacore'
  with pytest.raises(ValueError, match='16 devices of its 16 chips, not 32'):
    targets.find('v3:4x4')


# Made of the lines of TPU programs; shapes are small.
HLO = '''HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[8,16]) -> f32[2,16] {
  %input = f32[8,16]{1,0} parameter(0)
  %all-reduce.1 = f32[8,16]{1,0:T(8,128)} all-reduce(%input), channel_id=7, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[2,16]{1,0} dynamic-slice(%all-reduce.1, %i)
}

%until (p: (s32[], f32[4])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(22)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.9), direction=LT
}

%accepted (p: (u32[2], f32[4])) -> pred[] {
  ROOT %all = pred[] fusion(%p), kind=kLoop, calls=%add
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-gather.3 = bf16[1,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%w), \
channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
  %on_its_way = bf16[1,64] fusion(%w), kind=kCustom, calls=%copy.3
  %scattered = f32[4]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}

%draw (p: (u32[2], f32[4])) -> (u32[2], f32[4]) {
  %all-reduce.9 = u32[]{:T(128)} all-reduce(%b), channel_id=9, to_apply=%add
}

%copy.1 (w: bf16[1,64]) -> bf16[1,64] {
  %all-gather.4 = bf16[1,64]{1,0} all-gather(%w), channel_id=4
}

%copy.2 (w: bf16[1,64]) -> bf16[1,64] {
  %all-gather.5 = bf16[1,64]{1,0} all-gather(%w), channel_id=4
}

%copy.3 (w: bf16[1,64]) -> bf16[1,64] {
  %all-gather.7 = bf16[1,64]{1,0} all-gather(%w), channel_id=4
}

%unused (w: bf16[1,64]) -> bf16[1,64] {
  %all-gather.6 = bf16[1,64]{1,0} all-gather(%w), channel_id=6
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%start), condition=%until, body=%body
  %loop.1 = (u32[2], f32[4]) while(%start), condition=%accepted, body=%draw
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), channel_id=11
  %d = f32[8]{0} all-gather-done(%s)
  %begun = bf16[1,64] fusion(%w), kind=kCustom, calls=%copy.1
  %ended = bf16[1,64] fusion(%w), kind=kCustom, calls=%copy.2
  %both = (f32[3]{0}, /*index=1*/bf16[5]{0}) all-reduce(%x, %y), \
channel_id=12, to_apply=%add
  %part = f32[2]{0} reduce-scatter(%x), channel_id=13, \
replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %moved = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%x), \
channel_id=12, source_target_pairs={{0,1}}
  %turned = pred[4,2]{1,0} all-to-all(%x), channel_id=14
}
'''


def test_collectives_of_a_program():
  assert collectives.read(HLO) == {
      # In the loop; started, on its way and ended in fusions; asynchronous.
      'all-gather': (22 + 1 + 1, (22 + 1) * 128 + 32),
      'all-reduce': (1 + 1, 4 + 12 + 10),
      'reduce-scatter': (22 + 1, 22 * 8 * 16 * 4 + 4 * 8),
      'all-to-all': (1, 8),
      'collective-permute': (1, 24)}


def test_loops_that_name_their_turns():
  hlo = HLO.replace('condition=%until, body=%body',
                    'condition=%until, body=%body, backend_config='
                    '{"known_trip_count":{"n":"5"}}')
  assert collectives.read(hlo)['all-gather'].count == 5 + 1 + 1


def test_collectives_that_xla_makes():
  """Of a gradient on a mesh of 2 x 4: bytes that are known beforehand."""
  mesh = mesh_lib.make_mesh(2, 4)
  put = lambda shape, *axes: jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(*axes)))

  def gradient(w, x):
    return jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)

  hlo = jax.jit(gradient, out_shardings=jax.NamedSharding(mesh, jax.P())).lower(
      put((16, 8)), put((32, 16), mesh_lib.AXES)).compile().as_text()
  found = collectives.read(hlo)
  assert found['all-reduce'] == (1, 16 * 8 * 4)
  assert sum(sent.count for sent in found.values()) == 1


def test_flops_of_products_loops_and_branches():
  def run(x, w, kernel, image):
    x, _ = jax.lax.scan(
        lambda x, w: (jax.checkpoint(jnp.dot)(x, w), None), x, w)
    y = jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0], lambda: x)
    z = jax.lax.conv_general_dilated(image, kernel, (2, 2), 'VALID',
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return y.sum() + z.sum()

  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (
      (3, 8), (5, 8, 8), (2, 2, 4, 6), (7, 8, 8, 4))]
  product, window = 2 * 3 * 8 * 8, 2 * (7 * 4 * 4 * 6) * (2 * 2 * 4)
  assert flops.of_jaxpr(jax.make_jaxpr(run)(*arrays)) == 6 * product + window
  # Backwards the input has no gradient; of a strided convolution, the zeros
  # between the outputs are not multiplied.
  gradient = jax.grad(lambda image, kernel: run(
      jnp.ones((3, 8)), jnp.ones((5, 8, 8)), kernel, image))
  assert flops.of_jaxpr(jax.make_jaxpr(gradient)(arrays[3], arrays[2])) == (
      2 * window + 6 * product)


def test_bytes_of_a_device():
  mesh = mesh_lib.make_mesh(2, 4)
  put = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(
      shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(*axes)))
  tree = {'kernel': put((4, 8, 12), jnp.float32, None, None, 'fsdp'),
          'bias': put((12,), jnp.bfloat16),
          'key': jax.eval_shape(lambda: jax.random.key(0)).update(
              sharding=jax.NamedSharding(mesh, jax.P()))}
  assert forecast.bytes_of(tree) == 4 * 8 * 3 * 4 + 12 * 2 + 8
  assert forecast.bytes_of(None) == 0


def test_the_largest_batch():
  # 10 bytes are left for 6 of 4 images on each of 8 devices.
  assert forecast.largest_batch(32, 5, 6, 15, 8) == 6 * 8
  assert forecast.largest_batch(32, 20, 6, 15, 8) == 0  # the state alone


def test_a_line_of_the_table():
  sent = {kind: collectives.Sent(1, 2**29) for kind in collectives.KINDS}
  row = forecast.Forecast(
      'joint', 1024, 2**30, 2**31, 0, 2**28, 2**32, 2**33, True, 3 * 10**14,
      0.0952, sent, 1536, 61.3)
  assert forecast_table.row(row).split() == (
      'joint 1024 1.00 2.00 0.00 0.25 4.00 8.00 yes 300.0 95.2 0.50 0.50 0.50 '
      '1.00 ~1536 61').split()
  small = row._replace(activations=None, total=None, fits=False, seconds=None,
                       collectives=None, largest_batch=None, says='Used 17 G')
  first, second = forecast_table.row(small).splitlines()
  assert first.split()[6:] == '? ? no 300.0 ? ? ? ? ? ? 61'.split()
  assert second == '  Used 17 G'


def _config():
  config = tiny.get_config()
  config.phases, config.model.depth = ('dense', 'joint'), 2
  config.data.name, config.data.data_dir = 'folder', '/nowhere'
  config.mesh.update(data=4, fsdp=2)
  # Its file is not read.
  config.teacher.update(weights='FILE', model='vit_digits_patch2_8')
  return config


def test_phases_are_written_one_by_one(tmp_path, monkeypatch, capsys):
  path, seen = tmp_path / 'compile_for' / 'here.json', []
  row = forecast.Forecast('', 8, 1, 2, 3, 4, 5, 15, None, 6, None, {}, None, 7.)

  def of_phase(system, phase, target, mesh, taught, num_images):
    assert not num_images
    del target
    seen.append((system.model.num_classes, dict(mesh.shape), taught and (
        taught[0].model, sorted(taught[1])), path.exists()))
    return row._replace(phase=phase)

  monkeypatch.setattr(forecast, 'of_phase', of_phase)
  value = compile_for.compile_for(_config(), 'here', str(tmp_path))
  taught = seen[0][2]
  assert taught[0].num_classes == 1000 and 'backbone' in taught[1]
  mesh = {'data': 4, 'fsdp': 2}
  assert seen == [(1000, mesh, taught, False), (1000, mesh, None, True)]
  assert json.loads(path.read_text()) == value
  assert list(value['phases']) == ['dense', 'joint']
  assert value['chips'] == 8 and value['mesh'] == mesh
  assert 'on 8 chips of cpu; mesh data 4 x fsdp 2' in capsys.readouterr().out


@pytest.mark.parametrize('fields, words', [
    ({'mesh.fsdp': 3}, 'mesh.fsdp=3'),
    ({'joint.batch_size': 12}, 'joint.batch_size=12 .* 8 devices'),
    ({'dense.accumulate': 2**30}, 'dense.accumulate=1073741824 .*set it to '),
    ({'phases': ('dens',)}, "'dens'"),
    ({'steps_per_call': 10}, "^steps_per_call=10 .*/nowhere")])
def test_mistakes_cost_no_compilation(fields, words):
  config = _config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=words):
    compile_for.compile_for(config, 'here')


def test_a_file_that_cannot_be_written_costs_no_compilation(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='^workdir=.*cannot be written'):
    compile_for.compile_for(_config(), 'here', str(tmp_path / 'file'))


@pytest.mark.nightly
def test_steps_of_these_devices():
  """Bytes add up to what XLA says of the arguments."""
  value = compile_for.compile_for(_config(), 'here')
  dense, joint = value['phases']['dense'], value['phases']['joint']
  for row in dense, joint:
    assert row['total'] > row['activations'] > 0 and row['flops'] > 0
    assert row['collectives']['all-reduce']['count'] > 0
    assert row['fits'] is None and row['seconds'] is None
  assert dense['averages'] > 0 and joint['averages'] == 0
  # The dense phase has the other teacher, the joint phase its own.
  held = sum(joint[name] for name in (
      'parameters', 'optimizer', 'averages', 'teacher'))
  rest = joint['total'] - joint['activations'] - held
  assert 0 < rest - 8 * 8 * 8 * 3 / 8 < 2000  # images; labels, step and price


@pytest.mark.nightly
def test_several_steps_on_images_that_devices_hold():
  """Counts are those of one step; the images are among the arguments."""
  config = _config()
  config.phases, config.log_every = ('dense',), 5
  config.data.update(name='digits', data_dir='')
  config.teacher.update(weights='', model='')
  config.dense.update(nested=0., mask_weight=0.)  # compiles faster
  rows = []
  for most in 1, 5:
    config.steps_per_call = most
    rows.append(compile_for.compile_for(config, 'here')['phases']['dense'])
  one, many = rows
  assert many['flops'] == one['flops'] > 0
  assert many['parameters'] == one['parameters']
  for kind, sent in one['collectives'].items():
    assert abs(many['collectives'][kind]['bytes'] - sent['bytes']) <= (
        sent['bytes'] / 10), kind
  held = [row['total'] - row['activations'] for row in rows]
  num_images = len(data.load(config.data).train)
  # The bytes of an image and its label, and of the rows of a step, for the
  # images and labels of a batch.
  assert held[1] - held[0] == num_images * (64 + 4) + 5 * 4 - (64 + 4)


@pytest.mark.parametrize('text, says', [
    ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory\nrequired '
     'is 24.00G of 15.75G. Largest program allocations: ...',
     'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
     'is 24.00G of 15.75G'),
    ('INTERNAL: a bug', None)])
def test_programs_that_do_not_fit(text, says):
  def fail():
    raise jax.errors.JaxRuntimeError(text)
  lowered = types.SimpleNamespace(compile=fail)
  if says:
    assert forecast._compiled(lowered) == (None, says)
  else:
    with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
      forecast._compiled(lowered)

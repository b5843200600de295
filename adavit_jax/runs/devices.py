"""On what devices a checkpoint was saved: resumed on others, a run says so."""

from absl import logging


def describe(mesh):
  """Returns what a run computes on, JSON-serializable.

  Args:
    mesh: from `mesh.make_mesh`.
  """
  devices = mesh.devices.flat
  return dict(
      processes=len({device.process_index for device in devices}),
      kind=devices[0].device_kind, **mesh.shape)


def say_if_others(saved, mesh):
  """Logs a warning if a run is resumed on other devices.

  Args:
    saved: what `describe` returned then; None for a checkpoint that does not
      say.
    mesh: the mesh of the resumed run.
  """
  now = describe(mesh)
  if saved is not None and saved != now:
    logging.warning(
        'resumed on %s, saved on %s: the run goes on as it would have there up '
        'to rounding, not bit for bit', _text(now), _text(saved))


def _text(described):
  processes = described['processes']
  return (f"{described['data']} x {described['fsdp']} devices of kind "
          f"{described['kind']} in {processes} "
          f"process{'es' if processes > 1 else ''}")

"""Says that process 0 died, in the place of a process that JAX ended for it.

JAX ends every process within milliseconds of the death of process 0, to whose
coordinator all are connected; no Python code runs in them any more. So each has
a witness, which waits for its end:

  python witness.py HOST:PORT SENTENCE

It needs the standard library alone, and prints the sentence if its standard
input ends with no word from the process, and nobody listens at the address.
"""

import signal
import socket
import subprocess
import sys

_SECONDS = 5.  # for a connection


class Witness:
  """The witness of this process."""

  def __init__(self, address, sentence):
    """Starts it.

    Args:
      address: of JAX's coordinator, 'HOST:PORT'.
      sentence: what to say if it and this process are gone.
    """
    # In a session of its own, Ctrl-C does not reach it.
    self._process = subprocess.Popen(
        [sys.executable, '-I', '-S', __file__, address, sentence],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        start_new_session=True)

  def dismiss(self):
    """Ends it; this process says itself how it ends."""
    self._process.communicate(b'dismissed')


def _is_there(address):
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), _SECONDS).close()
  except (OSError, ValueError):
    return False
  return True


def _main(address, sentence):
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  known = _is_there(address)  # else nothing can be said about it later
  dismissed = sys.stdin.buffer.read()
  if known and not dismissed and not _is_there(address):
    print(sentence, file=sys.stderr, flush=True)


if __name__ == '__main__':
  _main(*sys.argv[1:])

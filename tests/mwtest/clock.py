"""Time as a process experiences it on a busy machine.

A promise like "within a second" is about the product, not about a machine that gives its processes
no processor. A FairClock leaves out the time during which a process of its own, which only sleeps,
was woken too late.
"""

import mmap
import struct
import subprocess
import sys
import tempfile
import time

_STEP = 0.01
_TOLERATED = 0.02  # what a machine that is not busy may be late

_SLEEPER = """
import mmap, struct, sys, time
shared = mmap.mmap(int(sys.argv[1]), 8)
step, tolerated, lost = float(sys.argv[2]), float(sys.argv[3]), 0.0
while True:
    began = time.monotonic()
    time.sleep(step)
    late = time.monotonic() - began - step
    if late > tolerated:
        lost += late
    struct.pack_into("d", shared, 0, lost)
"""


class FairClock:
    """A context manager; now() is only good for differences."""

    def __enter__(self) -> "FairClock":
        self._file = tempfile.TemporaryFile()
        self._file.truncate(mmap.PAGESIZE)
        self._shared = mmap.mmap(self._file.fileno(), 8)
        self._sleeper = subprocess.Popen(
            [sys.executable, "-c", _SLEEPER, str(self._file.fileno()), str(_STEP), str(_TOLERATED)],
            pass_fds=[self._file.fileno()])
        return self

    def __exit__(self, *_) -> None:
        self._sleeper.kill()
        self._sleeper.wait()
        self._shared.close()
        self._file.close()

    def now(self) -> float:
        return time.monotonic() - struct.unpack_from("d", self._shared, 0)[0]

"""What a bench makes, and who removes it.

janitor.py DIRECTORY MW - removes what a bench made, when the bench has ended in whichever way.

Standard input is a pipe from the bench: a line "namespace NAME" or "session PID" for each thing made, "done" if it
removed them itself. The end of the pipe without "done" means that the bench was killed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mwtest import build, netns  # noqa: E402  (needs the path above)


class Place:
    """A folder and network namespaces. They are gone after close(), and soon after we were killed."""

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix))
        self.directory.chmod(0o755)  # servers drop to users of their own
        self._namespaces = []
        self._janitor = subprocess.Popen([sys.executable, __file__, self.directory, build.program("mw")],
                                         stdin=subprocess.PIPE, start_new_session=True, text=True, bufsize=1)

    def add_namespace(self) -> netns.Namespace:
        one = netns.Namespace()
        self._janitor.stdin.write(f"namespace {one.name}\n")
        self._namespaces.append(one)
        return one.__enter__()

    def add_session(self, pid: int) -> None:
        """A `mw run`, which must be told to end before its namespace goes."""
        self._janitor.stdin.write(f"session {pid}\n")

    def close(self) -> None:
        """What runs in it has ended."""
        for one in reversed(self._namespaces):
            one.__exit__()
        shutil.rmtree(self.directory)
        self._janitor.stdin.write("done\n")
        self._janitor.stdin.close()
        self._janitor.wait(20)


def children_ended(pids: list, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)


def main() -> int:
    directory, mw = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    namespaces, sessions = [], []
    for line in sys.stdin:
        words = line.split()
        if words == ["done"]:
            return 0
        (namespaces if words[0] == "namespace" else sessions).append(words[1])
    # `mw run` removes its session when it is asked to end; a namespace's removal kills whatever is left in it.
    inside = set()
    for name in namespaces:
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=20, check=False)
        inside.update(listed.stdout.split())
    sessions = [pid for pid in sessions if pid in inside]  # the number may be another process's by now
    for pid in sessions:
        os.kill(int(pid), signal.SIGTERM)
    children_ended(sessions, 15)
    for name in namespaces:
        netns.remove(name)
    subprocess.run([mw, "clean"], capture_output=True, timeout=60, check=False)
    shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

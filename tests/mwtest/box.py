"""A private place for one compatibility test: namespace, directory, processes, clients.

Commands are started natively or protected, according to the test's mode; everything that a test
started has ended when its box is closed, whether the test passed or not.
"""

import http.client
import os
import shutil
import socket
import tempfile
from pathlib import Path

from . import build, host, netns, proc

_PREFIX = "mwcompat"
# Bounds for what hangs: a busy machine needs a fraction.
READY_SECONDS = 120
CLIENT_SECONDS = 60


def sweep() -> None:
    """Removes the directories of test runs that are no longer alive."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = left.name[len(_PREFIX):].partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(left, ignore_errors=True)


class Box:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        isolated = mode == build.ISOLATED
        self.namespace = host.OwnHost() if isolated else netns.Namespace()
        # Where clients find a published port, and where a protected program finds a plain one.
        self.addresses = ("127.0.0.1", host.ADDRESS) if isolated else ("127.0.0.1", "::1")
        self.backend = host.ADDRESS if isolated else "127.0.0.1"
        self._background = []

    def __enter__(self) -> "Box":
        self.directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.directory.chmod(0o755)  # servers drop to users of their own
        self.namespace.__enter__()
        return self

    def __exit__(self, *_) -> None:
        for background in reversed(self._background):
            background.stop()
            print(f"--- {background.log.name}\n{background.log.read_text(errors='replace')[-4000:]}")
        self.namespace.__exit__()
        shutil.rmtree(self.directory)

    # -- processes

    def _command(self, words: list, protected: bool, mode: str, ports: list = ()) -> list:
        chosen = (mode or self.mode) if protected else "native"
        return self.namespace.wrap(build.wrap(chosen, words, ports))

    def start(self, name: str, words: list, protected: bool = True, env: dict = None,
              mode: str = None, ports: list = ()) -> proc.Background:
        """Starts a server; it ends with the box. `ports` are published where the stack is isolated."""
        background = proc.Background(self._command(words, protected, mode, ports),
                                     self.directory / f"{name}.log",
                                     env={**os.environ, **(env or {})}, cwd=self.directory)
        self._background.append(background)
        return background

    def run(self, words: list, protected: bool = False, seconds: float = 180, check: bool = True,
            env: dict = None):
        """Runs a command to its end; returns it with its output as bytes."""
        return proc.run(self._command(words, protected, None), seconds, check,
                        env={**os.environ, **(env or {})}, cwd=self.directory)

    # -- clients, inside the namespace and never protected

    def connect(self, port: int, host: str = "127.0.0.1", seconds: float = CLIENT_SECONDS) -> socket.socket:
        with self.namespace.entered():
            return socket.create_connection((host, port), seconds)

    def wait_port(self, port: int, background: proc.Background, host: str = "127.0.0.1") -> None:
        """Waits until the server accepts."""
        def accepts() -> bool:
            try:
                self.connect(port, host, 5).close()
            except (ConnectionRefusedError, TimeoutError):
                return False
            return True
        proc.wait_for(accepts, READY_SECONDS, f"port {port} accepts", background)

    def wait_listening(self, port: int, background: proc.Background) -> None:
        """Waits until something listens, without a connection that the server would serve."""
        def listens() -> bool:
            with self.namespace.entered():
                rows = [row.split() for name in ("tcp", "tcp6")
                        for row in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]]
            return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)
        proc.wait_for(listens, READY_SECONDS, f"port {port} is listened on", background)

    def get(self, path: str, port: int, host: str = "127.0.0.1", headers: dict = None) -> tuple:
        """One HTTP request; returns (status, body)."""
        with self.namespace.entered():
            connection = http.client.HTTPConnection(host, port, timeout=CLIENT_SECONDS)
            try:
                connection.request("GET", path, headers=headers or {})
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()

    def exchange(self, port: int, data: bytes, until: bytes) -> bytes:
        """Sends data on a new connection and reads until the answer ends with `until`."""
        with self.connect(port) as connection:
            connection.sendall(data)
            answer = b""
            while not answer.endswith(until):
                chunk = connection.recv(65536)
                if not chunk:
                    break
                answer += chunk
            return answer

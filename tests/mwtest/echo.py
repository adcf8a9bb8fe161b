"""A protected server that gives back what comes in, as tests of the NetFlow interface see it: the server, an
engine's view of it, its peers, and what `mw` says."""

import contextlib
import json
import socket
from pathlib import Path

from mwnetflow import Client, Kind

from mwtest import proc

SECONDS = 20

# Serves each connection in a thread: what comes in goes back, and what ends a connection is written down
# as one line of JSON. "!opt LEVEL NAME" is answered with the option's value as the application sees it.
ECHO = """
import json, os, signal, socket, sys, threading
log = open(sys.argv[2], "a", buffering=1)
def say(**what):
    log.write(json.dumps(what) + "\\n")
def serve(c, peer):
    try:
        c.settimeout(None)
        while data := c.recv(65536):
            if data.startswith(b"!opt"):
                _, level, name = data.split()
                data = str(c.getsockopt(int(level), int(name))).encode()
            elif data.startswith(b"!sleep"):
                pass
            c.sendall(data)
        say(event="end", peer=peer[1])
    except OSError as e:
        say(event="error", errno=e.errno, peer=peer[1])
    finally:
        c.close()
def interrupted():
    signal.sigwait({signal.SIGINT})
    say(event="interrupted")
    os._exit(0)
def main():
    # A handler could run just before a call blocks, and then nobody would look.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=interrupted, daemon=True).start()
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("0.0.0.0", int(sys.argv[1])))
    s.listen(64)
    say(event="ready", pid=os.getpid())
    while True:
        c, peer = s.accept()
        threading.Thread(target=serve, args=(c, peer), daemon=True).start()
main()
"""


class Echo:
    """The protected server, an engine's view of it, and peers."""

    def __init__(self, session, port: int, log: Path) -> None:
        self.session = session
        self.port = port
        self.log = log
        self.folder = Path("/run/mwcomms") / session.name

    def engine(self, **options) -> Client:
        engine = Client(session=self.session.name, timeout=SECONDS, **options)
        engine.monitor(True)  # once this is answered every call is seen
        return engine

    def tcp_address(self) -> tuple:
        host, _, port = (self.folder / "mw/pvm/netflow").read_text().strip().rpartition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def events(self) -> list:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def wait_event(self, **what) -> dict:
        def find():
            for event in self.events():
                if all(event.get(key) == value for key, value in what.items()):
                    return event
            return None
        return proc.wait_for(find, SECONDS, f"the server says {what}", self.session.background)

    @contextlib.contextmanager
    def pair(self, engine: Client):
        """A connection and its number."""
        with self.connect() as peer:
            peer.sendall(b"hello")
            assert peer.recv(5) == b"hello"
            accepted = next(o for o in engine.observations() if o.kind is Kind.ACCEPT)
            yield peer, accepted.extra


def mw_says(mw: str, *words: str, status: int = 0) -> str:
    done = proc.run([mw, *words], SECONDS, check=False)
    assert done.returncode == status, done.stderr.decode()
    return done.stdout.decode()

"""What a stack may use and see, whatever runs in it; and what strangers at the NetFlow port can cause."""

import contextlib
import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from mwtest import proc

from mwnetflow import Client, Feature, Request

SECONDS = 60
TOKEN = "ab" * 32
# Sockets of protocols that a stack has no use for, and what the kernel says where their modules are missing.
KINDS = """
import errno, socket
for family in (socket.AF_INET, socket.AF_INET6):
    for kind, protocol in ((1, 0), (1, 6), (2, 0), (2, 17), (1, 17), (2, 6), (1, 262), (1, 132), (2, 136), (5, 132), (6, 33),
                           (3, 0), (3, 255), (3, 1), (10, 3), (4, 0), (1, 263), (15, 0)):
        try:
            socket.socket(family, kind, protocol).close()
            said = "made"
        except OSError as error:
            said = errno.errorcode[error.errno]
        print(family.name, kind, protocol, said)
"""


def test_kinds_of_sockets(mw, unchanged):
    done = proc.run([mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", KINDS], SECONDS)
    made = [line.split()[:3] for line in done.stdout.decode().splitlines() if line.endswith("made")]
    assert made == [[family, kind, protocol] for family in ("AF_INET", "AF_INET6")
                    for kind, protocol in (("1", "0"), ("1", "6"), ("2", "0"), ("2", "17"), ("2", "136"))]
    said = dict(line.rsplit(" ", 1) for line in done.stdout.decode().splitlines())
    assert {said[f"AF_INET {kind}"] for kind in ("1 17", "2 6", "1 262", "1 132", "3 0")} == {"EPROTONOSUPPORT"}
    assert {said[f"AF_INET {kind}"] for kind in ("3 255", "3 1", "10 3")} == {"EPERM"}
    assert {said[f"AF_INET {kind}"] for kind in ("5 132", "6 33", "4 0")} == {"ESOCKTNOSUPPORT"}
    assert {said[f"AF_INET {kind}"] for kind in ("1 263", "15 0")} == {"EINVAL"}


def test_what_a_stack_may_use(mw, unchanged, start, server):
    session = start("--", *server, "80", "x", limits="-c unlimited")
    ins = session.pid("ins")
    limits = {line[:26].strip(): line[26:].split() for line in Path(f"/proc/{ins}/limits").read_text().splitlines()[1:]}
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert limits["Max processes"][:2] == ["0", "0"]
    assert int(limits["Max data size"][1]) <= 1 << 30
    assert int(limits["Max file size"][1]) <= 1 << 16
    assert Path(f"/proc/{ins}/oom_score_adj").read_text() == "1000\n"
    assert Path(f"/proc/{session.pid('driver')}/oom_score_adj").read_text() != "1000\n"
    driver = Path(f"/proc/{session.pid('driver')}")
    assert "NoNewPrivs:\t1" in (driver / "status").read_text()
    assert "Max core file size        0                    0" in (driver / "limits").read_text()
    for kind in ("mnt", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{ins}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    folders = [fd for fd in Path(f"/proc/{ins}/fd").iterdir() if stat.S_ISDIR(fd.stat().st_mode)]
    assert folders == []


# -- strangers


@pytest.fixture
def guarded(start, tmp_path, server):
    """A session whose NetFlow port wants a token behind TLS; (its log, address, TLS context)."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    proc.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
              "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out",
              tmp_path / "cert"], SECONDS)
    session = start("--netflow", "0.0.0.0:0", "--netflow-token-file", str(tmp_path / "token"), "--netflow-certificate",
                    str(tmp_path / "cert"), "--netflow-key", str(tmp_path / "key"), "--", *server, "80", "x")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert"))
    port = int(Path(f"/run/mwcomms/{session.name}/mw/pvm/netflow").read_text().rsplit(":", 1)[1])

    def up() -> bool:
        with Client(f"127.0.0.1:{port}", token=TOKEN, tls=context, timeout=SECONDS) as engine:
            return engine.request(Request(1, 0, Feature.CONGESTION)).status == 0

    proc.wait_for(up, SECONDS, "the stack serves", session.background)
    return session, port, context


def test_strangers_do_not_fill_the_log(guarded):
    session, port, _ = guarded
    before = len(session.background.tail(1 << 20).splitlines())
    for _ in range(2000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), SECONDS) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
    lines = session.background.tail(1 << 20).splitlines()[before:]
    assert 0 < len(lines) < 500, "ten in a second, however long that took"


@pytest.mark.parametrize("how", ["leaves", "stays", "speaks nonsense", "begins a handshake"])
def test_a_flood_of_strangers_shuts_nobody_out(guarded, how):
    session, port, context = guarded
    over = threading.Event()
    hello = client_hello()

    def flood() -> None:
        held = []
        while not over.is_set():
            with contextlib.suppress(OSError):
                one = socket.create_connection(("127.0.0.1", port), SECONDS)
                if how == "speaks nonsense":
                    one.sendall(b"GET / HTTP/1.0\r\n\r\n")
                elif how == "begins a handshake":
                    one.sendall(hello)
                if how in ("stays", "begins a handshake"):
                    held.append(one)
                    if len(held) > 200:
                        held.pop(0).close()
                else:
                    one.close()
        for one in held:
            one.close()

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for one in threads:
        one.start()
    try:
        for _ in range(5):
            with Client(f"127.0.0.1:{port}", token=TOKEN, tls=context, timeout=SECONDS) as engine:
                assert engine.get(Feature.CONGESTION) is not None
    finally:
        over.set()
        for one in threads:
            one.join()
    assert session.alive("driver")


def client_hello() -> bytes:
    """The first flight of TLS 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()

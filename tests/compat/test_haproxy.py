"""haproxy with Debian's global and default sections, as an HTTP proxy to a plain Python backend, and its reload."""

import hashlib
import http.client
import re
import socket
from pathlib import Path

import pytest

import load
import transfer
import webserver
from mwtest.proc import wait_for

RELOADS = 5


def test_http_proxy(box):
    text = Path("/etc/haproxy/haproxy.cfg").read_text()
    text = text.replace("/run/haproxy/admin.sock", f"{box.directory}/admin.sock")
    text += """
frontend web
    bind 127.0.0.1:8080
    bind [::1]:8080
    default_backend app
backend app
    server one 127.0.0.1:9000 check
"""
    (box.directory / "haproxy.cfg").write_text(text)
    backend = box.start("backend", ["/usr/bin/python3", webserver.BACKEND, 9000], protected=False)
    box.wait_port(9000, backend)
    server = box.start("haproxy", ["haproxy", "-W", "-db", "-f", box.directory / "haproxy.cfg"])
    box.wait_port(8080, server)
    for size in (0, 32, 4096, 1 << 20):
        wanted = hashlib.sha256(str(size).encode()).digest() * (size // 32)
        for host in ("127.0.0.1", "::1"):
            assert box.get(f"/{size}", 8080, host) == (200, wanted)
    wanted = hashlib.sha256(b"3200").digest() * 100
    webserver.check_keep_alive(box, 8080, "/3200", wanted)
    webserver.check_parallel(box, 8080, "/3200", wanted)
    body = bytes(range(256)) * 8192
    with box.namespace.entered():
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == hashlib.sha256(body).hexdigest().encode()
        connection.close()
    backend.stop()
    assert box.get("/32", 8080)[0] == 503, "a dead backend is noticed"


@pytest.mark.isolated
def test_reload_under_load(box):
    """A new worker takes the listeners over from the old one; no request fails."""
    transfer.closing_backend(box, 9000)
    text = Path("/etc/haproxy/haproxy.cfg").read_text()
    text = text.replace("/run/haproxy/admin.sock", f"{box.directory}/admin.sock")
    text += f"frontend web\n    bind 0.0.0.0:8080\n    default_backend app\nbackend app\n    server one {box.backend}:9000\n"
    (box.directory / "haproxy.cfg").write_text(text)
    server = box.start("haproxy", ["haproxy", "-W", "-db", "-S", box.directory / "master.sock",
                                   "-f", box.directory / "haproxy.cfg"], ports=[8080])
    box.wait_port(8080, server)

    def tell(name: str, command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(f"{box.directory}/{name}.sock")
            connection.sendall(command)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def worker() -> list:
        """The newest one answers; nobody does if the one before it has taken the connection and leaves."""
        try:
            return re.findall(rb"^Pid: (\d+)$", tell("admin", b"show info\n"), re.M)
        except (ConnectionError, FileNotFoundError):
            return []

    def reload() -> bool:
        """By command: a signal may come before the master looks for it."""
        try:
            tell("master", b"reload\n")
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except ConnectionResetError:
            pass  # it took the command, and is another program now
        return True

    with load.while_loaded(box, 8080, "/1024"):
        for _ in range(RELOADS):
            before = wait_for(worker, 60, "a worker answers", server)
            wait_for(reload, 60, "the master takes commands", server)
            wait_for(lambda: worker() not in ([], before), 60, "another worker answers", server)
    assert box.get("/70000", 8080) == (200, transfer.body(70000))

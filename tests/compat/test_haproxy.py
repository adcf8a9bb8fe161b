"""haproxy with Debian's global and default sections, as an HTTP proxy to a plain Python backend."""

import hashlib
import http.client
from pathlib import Path

import webserver


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

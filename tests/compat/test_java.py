"""The JDK's HTTP server, run from a single source file."""

import http.client
from pathlib import Path

import webserver

PROGRAM = Path(__file__).parent / "programs" / "Server.java"


def test_java_http(box):
    server = box.start("java", ["/usr/bin/java", PROGRAM, 8000])
    box.wait_port(8000, server)
    for host in ("127.0.0.1", "::1"):
        assert box.get("/page", 8000, host) == (200, b"java says hello")
    webserver.check_keep_alive(box, 8000, "/page", b"java says hello")
    webserver.check_parallel(box, 8000, "/page", b"java says hello")
    body = bytes(range(256)) * 8192
    with box.namespace.entered():
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        connection.request("POST", "/echo", body)
        assert connection.getresponse().read() == body
        connection.close()
    assert webserver.load(box, 8000, 500, 8, "/page") == (500, 0)

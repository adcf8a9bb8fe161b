"""node's http server."""

import http.client
from pathlib import Path

import webserver

PROGRAM = Path(__file__).parent / "programs" / "server.js"


def test_node_http(box):
    server = box.start("node", ["/usr/bin/node", PROGRAM, 8000])
    box.wait_port(8000, server)
    for host in ("127.0.0.1", "::1"):
        assert box.get("/page", 8000, host) == (200, b"node says hello")
    wanted = b"".join(b"chunk %d\n" % i * 100 for i in range(2000))
    assert box.get("/chunks/2000", 8000) == (200, wanted)
    webserver.check_keep_alive(box, 8000, "/page", b"node says hello")
    webserver.check_parallel(box, 8000, "/page", b"node says hello")
    body = bytes(range(256)) * 16384
    with box.namespace.entered():
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        connection.request("POST", "/echo", body)
        assert connection.getresponse().read() == body
        connection.close()
    assert webserver.load(box, 8000, 1000, 20, "/page") == (1000, 0)

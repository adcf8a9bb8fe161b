"""node's http server."""

import http.client
from pathlib import Path

import pytest

import webserver
from mwtest.proc import wait_for

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


@pytest.mark.isolated
@pytest.mark.rotating
def test_node_cluster(box):
    server = box.start("node", ["/usr/bin/node", PROGRAM.with_name("cluster.js"), 8000], ports=[8000])
    box.wait_port(8000, server)
    wait_for(lambda: len({box.get("/pid", 8000)[1] for _ in range(8)}) == 2, 60, "both workers serve", server)
    for size in (1024, 3_000_000 // 16 * 16):
        webserver.check_parallel(box, 8000, f"/{size}", b"0123456789abcdef" * (size // 16))
    assert webserver.load(box, 8000, 2000, 16, "/1024") == (2000, 0)
    assert webserver.load(box, 8000, 2000, 16, "/1024", keep_alive=True) == (2000, 0)

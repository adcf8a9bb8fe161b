"""Proxies in front of a server that tells the end of its answer by closing: every byte before the end arrives.

A proxy may take the news of the end (EPOLLRDHUP, POLLRDHUP) for the promise that all bytes can be read at once,
as haproxy and stunnel do; an end that is told before its bytes cuts the answer, and the client sees success.
"""

import pytest

import transfer

TIMES = 12
FEW = 4
HAPROXY = """
global
    nbthread {threads}
defaults
    mode {mode}
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend front
    bind 0.0.0.0:8080
    default_backend back
backend back
    server one {backend}:9000
"""


def check(box, url: str) -> None:
    """One after the other, at once, and by clients that read slowly."""
    wanted = transfer.digest(transfer.body(transfer.LARGE))
    assert [transfer.fetch(box, url) for _ in range(TIMES)] == [wanted] * TIMES
    assert transfer.fetch_many(box, url, TIMES, 6) == [wanted] * TIMES
    assert transfer.fetch_many(box, url, FEW, FEW, "--limit-rate", "3M") == [wanted] * FEW


@pytest.mark.isolated
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.rotating)])
@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_haproxy(box, mode, threads):
    transfer.closing_backend(box, 9000)
    (box.directory / "haproxy.cfg").write_text(HAPROXY.format(mode=mode, threads=threads, backend=box.backend))
    server = box.start("haproxy", ["haproxy", "-db", "-f", box.directory / "haproxy.cfg"], ports=[8080])
    box.wait_port(8080, server)
    check(box, f"http://127.0.0.1:8080/{transfer.LARGE}")


@pytest.mark.isolated
def test_stunnel(box):
    transfer.closing_backend(box, 9000)
    transfer.certificate(box)
    (box.directory / "stunnel.conf").write_text(
        f"foreground = yes\npid =\ncert = {box.directory}/both\n"
        f"[web]\naccept = 0.0.0.0:8443\nconnect = {box.backend}:9000\n")
    server = box.start("stunnel", ["stunnel4", box.directory / "stunnel.conf"], ports=[8443])
    box.wait_port(8443, server)
    check(box, f"https://127.0.0.1:8443/{transfer.LARGE}")

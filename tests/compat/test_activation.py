"""Servers that are started for a socket: systemd's activation inside the session, xinetd, and socat's forks."""

import concurrent.futures
import shutil

import pytest

import transfer
import webserver

CLIENTS = 8
XINETD = """
service echo_lines
{{
    type = UNLISTED
    port = 7000
    socket_type = stream
    protocol = tcp
    wait = no
    user = root
    server = {cat}
    instances = 40
    cps = 1000 1
    per_source = UNLIMITED
    flags = IPv4
}}
"""


def echoes(box, data: bytes) -> bytes:
    """Sends while it reads: a `cat` does not take more than it can give back."""
    with box.connect(7000) as connection, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.sendall, data)
        answer = b""
        while len(answer) < len(data):
            chunk = connection.recv(1 << 16)
            if not chunk:
                break
            answer += chunk
        sending.result()
    return answer


def check_echo(box) -> None:
    large = transfer.body(transfer.LARGE)
    assert transfer.digest(echoes(box, large)) == transfer.digest(large)
    pieces = [transfer.body(1000 * number + 1) for number in range(CLIENTS * 4)]
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(lambda piece: echoes(box, piece), pieces)) == pieces


@pytest.mark.isolated
def test_socket_activation(box):
    server = box.start("activation", ["systemd-socket-activate", "-l", "0.0.0.0:8000", "/usr/bin/python3",
                                      transfer.PROGRAMS / "activated.py"], ports=[8000])
    box.wait_port(8000, server)
    wanted = b"activated " * 1000
    webserver.check_parallel(box, 8000, "/", wanted)
    webserver.check_keep_alive(box, 8000, "/", wanted)


@pytest.mark.isolated
def test_socket_activation_of_each_connection(box):
    server = box.start("activation", ["systemd-socket-activate", "-l", "0.0.0.0:7000", "-a", "--inetd", "/bin/cat"],
                       ports=[7000])
    box.wait_port(7000, server)
    check_echo(box)


@pytest.mark.rotating
@pytest.mark.isolated
def test_xinetd(box):
    (box.directory / "xinetd.conf").write_text(XINETD.format(cat=shutil.which("cat")))
    server = box.start("xinetd", ["xinetd", "-dontfork", "-pidfile", box.directory / "pid", "-f", box.directory / "xinetd.conf"],
                       ports=[7000])
    box.wait_port(7000, server)
    check_echo(box)


@pytest.mark.isolated
@pytest.mark.parametrize("how", ["", ",nofork"], ids=["relayed", "inherited"])
def test_socat_forks(box, how):
    server = box.start("socat", ["socat", "TCP4-LISTEN:7000,fork,reuseaddr,backlog=64", f"EXEC:/bin/cat{how}"], ports=[7000])
    box.wait_port(7000, server)
    check_echo(box)

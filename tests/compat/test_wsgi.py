"""gunicorn and uWSGI with several worker processes; gunicorn replaces them under load."""

import concurrent.futures
import http.client
import signal

import pytest

import load
import transfer
import webserver
from mwtest.proc import wait_for

RELOADS = 3


def check(box) -> None:
    for size in (0, 1024, transfer.LARGE):
        for address in box.addresses[:1]:
            status, got = box.get(f"/{size}", 8000, address)
            assert (status, transfer.digest(got)) == (200, transfer.digest(transfer.body(size)))
    webserver.check_parallel(box, 8000, "/1024", transfer.body(1024))
    with box.namespace.entered():
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        connection.request("POST", "/", transfer.body(transfer.LARGE))
        assert transfer.digest(connection.getresponse().read()) == transfer.digest(transfer.body(transfer.LARGE))
        connection.close()


@pytest.mark.rotating
@pytest.mark.isolated
@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_gunicorn(box, worker):
    server = box.start("gunicorn", ["/usr/bin/gunicorn", "-w", 2, "-k", worker, "--threads", 4, "-b", "0.0.0.0:8000",
                                    "--chdir", transfer.PROGRAMS, "wsgi:application"],
                       ports=[8000], env={"PYTHONDONTWRITEBYTECODE": "1"})
    box.wait_port(8000, server)
    check(box)
    def workers() -> set:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return {body for _, body in pool.map(lambda _: box.get("/pid", 8000), range(8))}

    with load.while_loaded(box, 8000, "/1024", 200, 4):
        for _ in range(RELOADS):
            before = workers()
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: not workers() & before, 60, "the workers are others", server)


@pytest.mark.rotating
@pytest.mark.isolated
def test_uwsgi(box):
    server = box.start("uwsgi", ["uwsgi", "--plugins", "http,python3", "--http", "0.0.0.0:8000", "--master", "--die-on-term",
                                 "--processes", 2, "--wsgi-file", transfer.PROGRAMS / "wsgi.py"],
                       ports=[8000], env={"PYTHONDONTWRITEBYTECODE": "1"})
    box.wait_port(8000, server)
    wait_for(lambda: box.get("/0", 8000)[0] == 200, 60, "the workers run", server)
    check(box)

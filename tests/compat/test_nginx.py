"""Debian's nginx with Debian's configuration, two workers; only pid and logs are moved."""

import concurrent.futures
import os
import re
import signal
import threading
from pathlib import Path

import webserver
from mwtest.proc import wait_for

RELOADS = 20
NGINX_PAGE = Path("/var/www/html/index.nginx-debian.html")


def _start(box):
    text = Path("/etc/nginx/nginx.conf").read_text()
    text = re.sub(r"worker_processes .*;", "worker_processes 2;", text)
    text = text.replace("/run/nginx.pid", f"{box.directory}/nginx.pid")
    text = text.replace("/var/log/nginx/", f"{box.directory}/")
    (box.directory / "nginx.conf").write_text(text)
    server = box.start("nginx", ["nginx", "-c", box.directory / "nginx.conf",
                                 "-e", box.directory / "error.log", "-g", "daemon off;"])
    box.wait_port(80, server)
    return server


def _workers(master: int) -> set:
    return set(Path(f"/proc/{master}/task/{master}/children").read_text().split())


def test_nginx(box):
    _start(box)
    page = webserver.PAGE.read_bytes()
    webserver.check_document(box, 80, "/", webserver.PAGE)
    webserver.check_document(box, 80, "/index.nginx-debian.html", NGINX_PAGE)
    webserver.check_missing(box, 80)
    webserver.check_keep_alive(box, 80, "/", page)
    webserver.check_parallel(box, 80, "/", page)
    assert webserver.load(box, 80, 2000, 32, keep_alive=True) == (2000, 0)


def test_reload_under_load(box):
    _start(box)
    wait_for((box.directory / "nginx.pid").exists, 60, "the pid file")
    master = int((box.directory / "nginx.pid").read_text())
    before = wait_for(lambda: _workers(master), 60, "workers run")
    done = threading.Event()

    def load() -> list:
        """Rounds of requests until the reloads are over."""
        rounds = []
        while not rounds or not done.is_set():
            rounds.append(webserver.load(box, 80, 1000, 8))
        return rounds

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(load)
        try:
            for _ in range(RELOADS):
                os.kill(master, signal.SIGHUP)
                old = before
                wait_for(lambda: _workers(master) - old, 60, "new workers run")
                before = _workers(master)
        finally:
            done.set()
        rounds = answer.result()
    assert rounds == [(1000, 0)] * len(rounds)
    webserver.check_document(box, 80, "/", webserver.PAGE)

"""Debian's nginx with Debian's configuration, two workers; only pid and logs are moved. Reload and binary upgrade."""

import os
import re
import signal
from pathlib import Path

import pytest

import load
import webserver
from mwtest.proc import wait_for
from mwtest.session import gone

RELOADS = 20
UPGRADES = 3
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
    with load.while_loaded(box, 80, "/", 1000):
        for _ in range(RELOADS):
            os.kill(master, signal.SIGHUP)
            old = before
            wait_for(lambda: _workers(master) - old, 60, "new workers run")
            before = _workers(master)
    webserver.check_document(box, 80, "/", webserver.PAGE)


@pytest.mark.isolated
def test_binary_upgrade_under_load(box):
    """A new master inherits the listeners by the environment variable NGINX, the old one leaves; no request fails."""
    (box.directory / "nginx.conf").write_text(
        f"pid {box.directory}/nginx.pid; worker_processes 2; events {{}} http {{ access_log off; "
        "server { listen 0.0.0.0:8080; root /var/www/html; } }")
    # One that is not in the background ignores the signal, and so does one whose starter has not ended yet: it takes
    # its parent for the old binary.
    server = box.start("nginx", ["bash", "-c", '/usr/sbin/nginx -c "$0/nginx.conf" -e "$0/error.log" && echo started && exec sleep infinity',
                                 box.directory], ports=[8080])
    box.wait_port(8080, server)
    pid, old_pid = box.directory / "nginx.pid", box.directory / "nginx.pid.oldbin"
    wait_for(lambda: "started\n" in server.log.read_text(), 60, "it is in the background", server)
    with load.while_loaded(box, 8080, "/index.html"):
        for _ in range(UPGRADES):
            old = int(pid.read_text())
            os.kill(old, signal.SIGUSR2)
            new = wait_for(lambda: old_pid.exists() and pid.exists() and pid.read_text().strip(), 60, "a new master")
            wait_for(lambda: len(_workers(int(new))) >= 2, 60, "the new master's workers")
            os.kill(old, signal.SIGQUIT)
            wait_for(lambda: gone(old) and not old_pid.exists(), 60, "the end of the old master")
    assert box.get("/index.html", 8080) == (200, webserver.PAGE.read_bytes())
    last = int(pid.read_text())
    os.kill(last, signal.SIGQUIT)
    wait_for(lambda: gone(last), 60, "its end")

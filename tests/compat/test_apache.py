"""Debian's Apache with Debian's configuration; only the MPM, and where pid and logs go, change."""

import concurrent.futures
import shutil
import threading
from pathlib import Path

import pytest

import webserver
from mwtest.proc import wait_for

RELOADS = 5
ICONS = Path("/usr/share/apache2/icons")


def _configure(box, mpm: str) -> dict:
    root = box.directory / "apache2"
    shutil.copytree("/etc/apache2", root, symlinks=True)
    for enabled in (root / "mods-enabled").glob("mpm_*"):
        enabled.unlink()
    for suffix in ("load", "conf"):
        (root / "mods-enabled" / f"mpm_{mpm}.{suffix}").symlink_to(
            f"../mods-available/mpm_{mpm}.{suffix}")
    for folder in ("run", "lock", "logs"):
        (box.directory / folder).mkdir(mode=0o777)
    return {"APACHE_RUN_USER": "www-data", "APACHE_RUN_GROUP": "www-data",
            "APACHE_PID_FILE": f"{box.directory}/run/apache2.pid",
            "APACHE_RUN_DIR": f"{box.directory}/run", "APACHE_LOCK_DIR": f"{box.directory}/lock",
            "APACHE_LOG_DIR": f"{box.directory}/logs", "LANG": "C"}


@pytest.mark.parametrize("mpm", ["event", "worker", "prefork"])
def test_apache(box, mpm):
    env = _configure(box, mpm)
    server = box.start("apache2", ["apache2", "-d", box.directory / "apache2", "-f", "apache2.conf",
                                   "-D", "FOREGROUND"], env=env)
    box.wait_port(80, server)
    page = webserver.PAGE.read_bytes()
    webserver.check_document(box, 80, "/", webserver.PAGE)
    for name in ("README", "apache_pb.png", "folder.gif"):
        if (ICONS / name).exists():
            webserver.check_document(box, 80, f"/icons/{name}", ICONS / name)
    webserver.check_missing(box, 80)
    webserver.check_keep_alive(box, 80, "/", page)
    webserver.check_parallel(box, 80, "/", page)
    assert webserver.load(box, 80, 1000, 20) == (1000, 0)
    assert webserver.load(box, 80, 1000, 20, keep_alive=True) == (1000, 0)
    log = (box.directory / "logs" / "access.log").read_text()
    assert '127.0.0.1 - - ' in log and '::1 - - ' in log, "the true client addresses are logged"


def test_graceful_restart(box):
    """No request fails while the children are replaced, natively or here."""
    env = _configure(box, "event")
    words = ["apache2", "-d", box.directory / "apache2", "-f", "apache2.conf"]
    server = box.start("apache2", [*words, "-D", "FOREGROUND"], env=env)
    box.wait_port(80, server)
    log = box.directory / "logs/error.log"
    done = threading.Event()

    def started() -> int:
        return log.read_text().count("AH00489:")  # "configured -- resuming normal operations"

    def load() -> list:
        rounds = []
        while not rounds or not done.is_set():
            rounds.append(webserver.load(box, 80, 300, 8))
        return rounds

    wait_for(started, 60, "it has written its number down", server)  # after it listens
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(load)
        try:
            for _ in range(RELOADS):
                before = started()
                box.run([*words, "-k", "graceful"], env=env)
                wait_for(lambda: started() > before, 60, "it has reloaded", server)
        finally:
            done.set()
        rounds = answer.result()
    assert rounds == [(300, 0)] * len(rounds)
    webserver.check_document(box, 80, "/", webserver.PAGE)

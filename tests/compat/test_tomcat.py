"""Debian's Tomcat with Debian's server.xml under kept-alive load: no request waits for a thread that never wakes.

A worker that sleeps through its answer comes back at Tomcat's connectionTimeout of 20 s at the earliest.
"""

import re
import shutil
from pathlib import Path

import pytest

HOME = Path("/usr/share/tomcat10")
ROUNDS = 4
REQUESTS = 3000
LONGEST_SECONDS = 19
PAGE = b"<html>" + b"Tomcat says hello. " * 100 + b"</html>"


def _start(box):
    base = box.directory / "base"
    for folder in ("logs", "temp", "work", "webapps/ROOT"):
        (base / folder).mkdir(parents=True)
    shutil.copytree("/etc/tomcat10", base / "conf")
    (base / "webapps/ROOT/index.html").write_bytes(PAGE)
    server = box.start("tomcat", [HOME / "bin/catalina.sh", "run"], ports=[8080],
                       env={"CATALINA_HOME": str(HOME), "CATALINA_BASE": str(base)})
    box.wait_port(8080, server)
    return server


@pytest.mark.slow
@pytest.mark.isolated
def test_kept_alive_load(box):
    server = _start(box)
    for address in box.addresses:
        assert box.get("/", 8080, address) == (200, PAGE)
    for _ in range(ROUNDS):
        text = box.run(["ab", "-q", "-k", "-n", REQUESTS, "-c", 20, "-s", 60, "http://127.0.0.1:8080/"]).stdout.decode()
        assert re.search(rf"Complete requests:\s+{REQUESTS}\n", text), text
        assert re.search(r"Failed requests:\s+0\n", text) and "Non-2xx" not in text, text
        longest = int(re.search(r"100%\s+(\d+) \(longest request\)", text)[1]) / 1000
        assert longest < LONGEST_SECONDS, f"a request took {longest} s\n{text}"
    assert server.alive()

"""Another preloaded library beside the channel's: jemalloc takes over the allocator of every process."""

from pathlib import Path

import pytest

import webserver

JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
CONFIGURATION = """
pid {directory}/pid;
worker_processes 2;
events {{}}
http {{ access_log off; server {{ listen 0.0.0.0:8080; root /var/www/html; }} }}
"""


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.isolated
def test_jemalloc(box):
    (box.directory / "nginx.conf").write_text(CONFIGURATION.format(directory=box.directory))
    server = box.start("nginx", ["nginx", "-c", box.directory / "nginx.conf", "-e", "stderr", "-g", "daemon off;"],
                       ports=[8080], env={"LD_PRELOAD": JEMALLOC})
    box.wait_port(8080, server)
    page = webserver.PAGE.read_bytes()
    webserver.check_keep_alive(box, 8080, "/index.html", page)
    webserver.check_parallel(box, 8080, "/index.html", page)
    assert webserver.load(box, 8080, 1000, 20, "/index.html", keep_alive=True) == (1000, 0)
    master = int((box.directory / "pid").read_text())
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    assert len(workers) == 2
    for pid in (master, *workers):
        assert JEMALLOC in libraries(pid)
        assert ("libmwshim" in libraries(pid)) == (box.mode != "native")

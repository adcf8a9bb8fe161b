"""Debian's lighttpd with Debian's configuration; only pid and log are moved."""

import re
from pathlib import Path

import webserver


def test_lighttpd(box):
    text = Path("/etc/lighttpd/lighttpd.conf").read_text()
    text = re.sub(r'(server\.pid-file\s*=) .*', rf'\1 "{box.directory}/pid"', text)
    text = re.sub(r'(server\.errorlog\s*=) .*', rf'\1 "{box.directory}/error.log"', text)
    (box.directory / "error.log").touch()
    (box.directory / "error.log").chmod(0o666)
    (box.directory / "lighttpd.conf").write_text(text)
    server = box.start("lighttpd", ["lighttpd", "-D", "-f", box.directory / "lighttpd.conf"])
    box.wait_port(80, server)
    page = webserver.PAGE.read_bytes()
    webserver.check_document(box, 80, "/", webserver.PAGE)
    webserver.check_missing(box, 80)
    webserver.check_keep_alive(box, 80, "/", page)
    webserver.check_parallel(box, 80, "/", page)
    assert webserver.load(box, 80, 1000, 20) == (1000, 0)

"""Caching proxies with Debian's configuration; only ports, logs and folders change."""

import re
from pathlib import Path

import pytest

import transfer

TIMES = 8


def check(box, url: str, *options) -> None:
    for size in (1024, transfer.LARGE):
        wanted = transfer.digest(transfer.body(size))
        assert transfer.fetch_many(box, f"{url}/{size}", TIMES, 4, *options) == [wanted] * TIMES


@pytest.mark.rotating
@pytest.mark.isolated
def test_squid(box):
    transfer.closing_backend(box, 9000)
    text = Path("/etc/squid/squid.conf").read_text()
    text = text.replace("http_access deny all", "http_access allow all")  # an isolated one's clients come from elsewhere
    text = re.sub(r"^http_port .*$", "http_port 0.0.0.0:3128", text, flags=re.M)
    text = re.sub(r"^coredump_dir .*$", f"coredump_dir {box.directory}", text, flags=re.M)
    text = re.sub(r"^include .*$", "", text, flags=re.M)
    (box.directory / "logs").mkdir(mode=0o777)
    (box.directory / "logs").chmod(0o777)
    text += (f"pid_filename {box.directory}/pid\npinger_enable off\nshutdown_lifetime 1 seconds\n"
             f"cache_log {box.directory}/logs/cache.log\naccess_log none\nmax_filedescriptors 4096\n")
    text = re.sub(r"^acl Safe_ports port 80\b", "acl Safe_ports port 1-65535\n\\g<0>", text, flags=re.M)
    (box.directory / "squid.conf").write_text(text)
    server = box.start("squid", ["squid", "-N", "-f", box.directory / "squid.conf"], ports=[3128])
    box.wait_port(3128, server)
    check(box, f"http://{box.backend}:9000", "-x", "http://127.0.0.1:3128", "--noproxy", "")


@pytest.mark.rotating
@pytest.mark.isolated
def test_varnish(box):
    transfer.closing_backend(box, 9000)
    text = Path("/etc/varnish/default.vcl").read_text()
    text = text.replace('"127.0.0.1"', f'"{box.backend}"').replace('"8080"', '"9000"')
    (box.directory / "default.vcl").write_text(text)
    server = box.start("varnishd", ["varnishd", "-F", "-n", box.directory / "varnish", "-a", "0.0.0.0:6081",
                                    "-f", box.directory / "default.vcl", "-s", "malloc,64m", "-T", "none"], ports=[6081])
    box.wait_port(6081, server)
    check(box, "http://127.0.0.1:6081")
    assert b"Via:" in box.run(["curl", "-sS", "-D", "-", "-o", "/dev/null", "http://127.0.0.1:6081/1024"]).stdout

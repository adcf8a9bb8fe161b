"""nginx with TLS: a large answer goes out by many sends until EAGAIN, and none of them is left lying.

Waits of a whole second are counted, not times compared: nothing on the way needs one, and a ring that nobody empties
waits for the stack's beat of one second.
"""

import time

import pytest

import transfer

TIMES = 8
STALL_SECONDS = 0.9
# What a busy machine may do by itself, natively as well.
TOLERATED = 2
CONFIGURATION = """
pid {directory}/pid;
worker_processes 2;
events {{}}
http {{
    access_log off;
    server {{
        listen 0.0.0.0:8443 ssl{http2};
        ssl_certificate {directory}/cert;
        ssl_certificate_key {directory}/key;
        root {directory}/pages;
    }}
}}
"""


@pytest.fixture
def nginx(box):
    transfer.certificate(box)
    (box.directory / "pages").mkdir()
    (box.directory / "pages").chmod(0o755)
    for size in (1024, transfer.LARGE):
        (box.directory / "pages" / str(size)).write_bytes(transfer.body(size))

    def start(http2: str):
        (box.directory / "nginx.conf").write_text(CONFIGURATION.format(directory=box.directory, http2=http2))
        server = box.start("nginx", ["nginx", "-c", box.directory / "nginx.conf", "-e", "stderr", "-g", "daemon off;"],
                           ports=[8443])
        box.wait_port(8443, server)
        return box

    return start


@pytest.mark.isolated
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_nginx_tls(nginx, version):
    box = nginx(" http2" if version == "--http2" else "")
    for size in (1024, transfer.LARGE):
        wanted = transfer.digest(transfer.body(size))
        url = f"https://127.0.0.1:8443/{size}"
        stalls = 0
        for _ in range(TIMES):
            began = time.monotonic()
            assert transfer.fetch(box, url, version) == wanted
            stalls += int((time.monotonic() - began) / STALL_SECONDS)
        assert stalls <= TOLERATED, f"{stalls} waits of a second in {TIMES} transfers of {size} bytes"
        assert transfer.fetch_many(box, url, TIMES, 4, version) == [wanted] * TIMES

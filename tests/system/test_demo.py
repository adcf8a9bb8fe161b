"""`./dev demo --once`, as a newcomer runs it."""

import subprocess

from mwtest import build


def test_a_page_a_live_connection_and_its_end():
    done = subprocess.run([build.ROOT / "dev", "demo", "--once"], capture_output=True, text=True,
                          timeout=300, stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "HTTP/1.1 200 OK" in said
    # Half a request was seen, and what the visitor saw of its end.
    assert "apache2[" in said.partition("half a request")[2].partition("cutting it")[0]
    assert "the visitor says: read error: 3: Connection reset by peer" in said
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=20, check=True)
    assert "mwdemo" not in left.stdout

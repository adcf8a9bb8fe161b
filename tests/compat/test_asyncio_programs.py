"""Python's asyncio as server, and as client."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "aio.py"


@pytest.mark.parametrize("protect", ["server", "client", "both"])
def test_asyncio(box, protect):
    server = box.start("server", ["/usr/bin/python3", PROGRAM, "server", 8000],
                       protected=protect != "client")
    box.wait_port(8000, server)
    answer = box.run(["/usr/bin/python3", PROGRAM, "client", 8000], protected=protect != "server")
    assert answer.stdout.decode().strip().endswith("41 of 41")

"""iperf3 in both directions, several streams, TCP and UDP; it checks its own counts."""

import json

import pytest


def _client(box, *options, protected=False) -> dict:
    done = box.run(["iperf3", "-c", "127.0.0.1", "-J", *options], protected=protected)
    result = json.loads(done.stdout)
    assert "error" not in result, result["error"]
    return result["end"]


@pytest.mark.parametrize("protect", ["server", "client"])
def test_iperf3(box, protect):
    server = box.start("iperf3", ["iperf3", "-s", "-B", "127.0.0.1"], protected=protect == "server")
    box.wait_port(5201, server)
    protected = protect == "client"
    size = 64 << 20
    for direction in ((), ("-R",)):
        end = _client(box, "-n", size, *direction, protected=protected)
        # iperf3 stops reading when the control connection says so: what is on its way then is lost.
        assert end["sum_received"]["bytes"] >= size * 0.8
        assert end["sum_sent"]["bytes"] >= size
    end = _client(box, "-n", size, "-P", 4, protected=protected)
    assert len(end["streams"]) == 4 and end["sum_sent"]["bytes"] >= size
    end = _client(box, "-u", "-b", "50M", "-t", 1, "-l", 1200, protected=protected)
    assert end["sum"]["packets"] > 100 and end["sum"]["lost_percent"] < 20

"""iperf3 in both directions, several streams, TCP and UDP; it checks its own counts.

Its stock server listens on [::] for both families.
"""

import itertools
import json

import pytest

PORT = 5201
SIZE = 64 << 20
# The receiver stops reading when the control connection says that the test is over; what is on its
# way then is lost, natively too. Unbounded, a window grows to tcp_rmem's maximum, half of SIZE on some
# machines; bounded, what both kernels and the rings hold together is below two hundredths of it.
WINDOW = ("-w", "256K")


@pytest.fixture(params=["server", "client"])
def measure(request, box):
    """measure(options...) -> the `end` part of the client's report; each time with a new server."""
    protect = request.param
    names = (f"iperf3-{number}" for number in itertools.count())

    def one(*options, host: str = "127.0.0.1") -> dict:
        # A server for one test: it would close its listener and open another after each.
        server = box.start(next(names), ["iperf3", "-s", "-1", "-p", PORT],
                           protected=protect == "server")
        box.wait_listening(PORT, server)
        done = box.run(["iperf3", "-c", host, "-p", PORT, "-J", *options],
                       protected=protect == "client", check=False)
        result = json.loads(done.stdout)
        assert "error" not in result, result["error"]
        assert server.process.wait(60) == 0, server.tail()
        return result["end"]

    return one


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["up", "down"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_one_stream(measure, direction, host):
    end = measure("-n", SIZE, *WINDOW, *direction, host=host)
    assert end["sum_received"]["bytes"] >= SIZE * 0.95
    assert end["sum_sent"]["bytes"] >= SIZE


def test_four_streams(measure):
    end = measure("-n", SIZE, "-P", 4)
    assert len(end["streams"]) == 4 and end["sum_sent"]["bytes"] >= SIZE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams(measure, host):
    # Slow enough for the receiver's buffer to hold what comes while it has no processor.
    end = measure("-u", "-b", "2M", "-t", 1, "-l", 1200, host=host)
    assert end["sum"]["packets"] > 100 and end["sum"]["lost_percent"] < 20

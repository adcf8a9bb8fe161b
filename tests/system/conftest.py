"""Somebody from elsewhere, for tests of what the network sees."""

import os

import pytest

from mwtest import netns, proc
from mwtest.session import output


class Visitor:
    """A network namespace that is connected to the host like any machine on a network."""

    HOST4, HOST6 = "198.18.254.1", "fd5e::1"
    OWN4, OWN6 = "198.18.254.2", "fd5e::2"

    def __init__(self, namespace: netns.Namespace) -> None:
        self._namespace = namespace
        self._link = f"mwt{os.getpid()}"[:15]

    def connect(self) -> None:
        name = self._namespace.name
        output("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", name)
        output("ip", "address", "add", f"{self.HOST4}/30", "dev", self._link)
        output("ip", "-6", "address", "add", f"{self.HOST6}/126", "dev", self._link, "nodad")
        output("ip", "link", "set", self._link, "up")
        for words in (["address", "add", f"{self.OWN4}/30", "dev", "eth0"],
                      ["-6", "address", "add", f"{self.OWN6}/126", "dev", "eth0", "nodad"],
                      ["link", "set", "eth0", "up"], ["route", "add", "default", "via", self.HOST4],
                      ["-6", "route", "add", "default", "via", self.HOST6]):
            output("ip", "-n", name, *words)

    def disconnect(self) -> None:
        output("ip", "link", "delete", self._link)

    @property
    def name(self) -> str:
        return self._namespace.name

    def wrap(self, words: list) -> list:
        """The command, started over there."""
        return self._namespace.wrap(words)

    def run(self, *words, check: bool = True, **options):
        """Runs a command over there."""
        return proc.run(self._namespace.wrap(words), 120, check, **options)

    def curl(self, url: str, limit: int = 60, check: bool = True):
        return self.run("curl", "-sS", "-m", str(limit), url, check=check)


@pytest.fixture
def visitor(mw):
    with netns.Namespace() as namespace:
        one = Visitor(namespace)
        one.connect()
        yield one
        one.disconnect()

"""A client that waits: for threads, scripts and the interpreter's prompt."""

from __future__ import annotations

import builtins
import itertools
import ssl
from collections import deque
from typing import Any, Callable, Deque, Iterator, Optional

from . import _requests
from .wire import (Decoder, Feature, Flow, Observation, Request, Response, Rounds, Rule,
                   SampledRound)


class Client(_requests.Requests):
    """One connection to a NetFlow server; a context manager.

    Observations that come while a request waits for its answer are kept for observations().
    """

    def __init__(self, address: Optional[str] = None, *, session: Optional[str] = None,
                 token: Optional[str] = None, tls: Optional[ssl.SSLContext] = None,
                 timeout: Optional[float] = None) -> None:
        """Connects to "HOST:PORT" or to a path; without an address, to a session of this host.

        `timeout` bounds each wait, in seconds; TimeoutError says that it has passed.
        """
        self._socket = _requests.open_socket(address or _requests.address_of_session(session), token, tls,
                                             timeout)
        self._decoder = Decoder()
        self._observations: Deque[Observation] = deque()
        self._responses: dict[int, Response] = {}
        self._flows: list[Flow] = []
        self._sampling = Rounds()
        self._rounds: Deque[SampledRound] = deque()
        self._rules: list[Rule] = []
        self._ids = itertools.count(1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def settimeout(self, seconds: Optional[float]) -> None:
        self._socket.settimeout(seconds)

    def _read(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the NetFlow server closed the connection")
        for message in self._decoder.feed(data):
            if isinstance(message, Observation):
                self._observations.append(message)
            elif isinstance(message, Flow):
                self._flows.append(message)
            elif isinstance(message, Rule):
                self._rules.append(message)
            elif isinstance(message, Response):
                self._responses[message.id] = message
            elif (whole := self._sampling.add(message)) is not None:
                self._rounds.append(whole)

    def next(self) -> Observation:
        """The next observation."""
        while not self._observations:
            self._read()
        return self._observations.popleft()

    def observations(self) -> Iterator[Observation]:
        """Observations as they come, without an end."""
        while True:
            yield self.next()

    def next_round(self) -> SampledRound:
        """The next round of samples; sample() makes them come."""
        while not self._rounds:
            self._read()
        return self._rounds.popleft()

    def rounds(self) -> Iterator[SampledRound]:
        """Rounds of samples as they come, without an end."""
        while True:
            yield self.next_round()

    def list(self) -> list[Flow]:
        """Every socket that is open now."""
        self._flows = []
        self.get(Feature.LIST)
        return self._flows

    # `list` names the method above from here on.
    def rules(self) -> "builtins.list[Rule]":
        """The rules in force, and those that ended last."""
        self._rules = []
        self.get(Feature.RULES)
        return self._rules

    def request(self, request: Request) -> Response:
        """Sends a request as it is and waits for its answer."""
        self._socket.sendall(request.pack())
        while request.id not in self._responses:
            self._read()
        return self._responses.pop(request.id)

    def _next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF

    def _send(self, request: Request, reading: Callable[[int, Response], Any]) -> Any:
        return reading(request.name, self.request(request))

"""What both clients ask for; each says in its own way how an answer is waited for."""

from __future__ import annotations

import errno
import os
import socket as _socket
import ssl
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from .wire import (BY_PEER, BY_SOCKET, DRY_RUN, ENDS_WITH_CONNECTION, WRITE, Address, ExtendedRequest, Feature, Request,
                   Response, peer_identity, socket_identity)

_TIMES = (Feature.SNDTIMEO, Feature.RCVTIMEO)
_RATES = (Feature.MIN_RATE_IN, Feature.MIN_RATE_OUT)


class MinRate(NamedTuple):
    """The value of a minimum rate: bytes a second, 0 for none, and seconds of grace."""
    rate: int
    grace: int = 0


class Changed(NamedTuple):
    """What change() did: the value in force, and the rule's id, 0 if only rules() tells it."""
    value: Any
    rule: int


Value = Union[int, float, MinRate]


class RequestError(OSError):
    """The server answered with an error; `errno` says which."""

    def __init__(self, feature: int, status: int) -> None:
        name = Feature(feature).name.lower() if feature in Feature._value2member_map_ else hex(feature)
        super().__init__(status, f"{name}: {os.strerror(status)}")


def value_of(feature: int, response: Response) -> Value:
    """What a response says: seconds for times, a MinRate for minimum rates, else a number. Raises RequestError."""
    if response.status != 0:
        raise RequestError(feature, response.status)
    if feature in _TIMES:
        return response.value0 + response.value1 / 1e6
    if feature in _RATES:
        return MinRate(response.value0, response.value1)
    return response.value0


def changed(feature: int, response: Response) -> Changed:
    value = value_of(feature, response)
    return Changed(value, 0 if feature in _TIMES + _RATES else response.value1)


def values_for(feature: int, value: Value) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value
    if feature not in _TIMES:
        return int(value) & 0xFFFFFFFFFFFFFFFF, 0
    microseconds = round(value * 1e6)
    return microseconds // 1_000_000, microseconds % 1_000_000


def default_base() -> Path:
    """Where the sessions of this user are."""
    if os.geteuid() == 0:
        return Path("/run/mwcomms")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime, "mwcomms") if runtime.startswith("/") else Path(f"/tmp/mwcomms-{os.geteuid()}")


def address_of_session(session: Optional[str] = None) -> str:
    """The local socket of a session; without a name, of the only one that runs."""
    if session is not None:
        return str(default_base() / session / "netflow.sock")
    found = sorted(default_base().glob("*/netflow.sock"))
    if len(found) != 1:
        raise OSError(errno.ENOENT, f"{len(found)} sessions run: name one of them")
    return str(found[0])


def open_socket(address: str, token: Optional[str], context: Optional[ssl.SSLContext],
                timeout: Optional[float]) -> _socket.socket:
    """A connection to "HOST:PORT" or to a path; with a token, through TLS."""
    if "/" in address:
        raw = _socket.socket(_socket.AF_UNIX)
        raw.settimeout(timeout)
        # Through the folder's descriptor, so that a long path fits.
        folder = os.open(os.path.dirname(address), os.O_PATH | os.O_DIRECTORY)
        try:
            raw.connect(f"/proc/self/fd/{folder}/{os.path.basename(address)}")
        except OSError:
            raw.close()
            raise
        finally:
            os.close(folder)
        return raw
    host, _, port = address.rpartition(":")
    raw = _socket.create_connection((host.strip("[]"), int(port)), timeout)
    raw.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    if token is None:
        return raw
    wrapped = (context or ssl.create_default_context()).wrap_socket(raw, server_hostname=host.strip("[]"))
    wrapped.sendall(token.encode() + b"\n")
    return wrapped


def _identity(socket: Optional[int], peer: Union[str, Address, None]) -> tuple[int, bytes]:
    """What a request is about, as flags and as 20 bytes."""
    if socket is not None:
        return BY_SOCKET, socket_identity(socket)
    if peer is not None:
        return BY_PEER, peer_identity(peer)
    return 0, bytes(20)


class Requests:
    """Every request, in terms of `_send`, which returns what `reading` makes of the answer, or something that leads
    to it."""

    def _send(self, request: Request, reading: Callable[[int, Response], Any]) -> Any:
        raise NotImplementedError

    def _next_id(self) -> int:
        raise NotImplementedError

    def _ask(self, feature: int, flags: int, value: Value, identity: bytes) -> Any:
        value0, value1 = values_for(feature, value)
        return self._send(Request(self._next_id(), flags, feature, value0, value1, identity), value_of)

    def monitor(self, on: bool) -> Any:
        """Turns the observations to this client on or off."""
        return self._ask(Feature.MONITOR_ON if on else Feature.MONITOR_OFF, WRITE, 1, bytes(20))

    def observe_holders(self, on: bool = True) -> Any:
        """Turns observations to ExtendedObservations, which say who holds the socket and how its connection stands."""
        return self._ask(Feature.OBSERVATIONS, WRITE, 2 if on else 1, bytes(20))

    def sample(self, seconds: float) -> Any:
        """A round of samples of every socket and process each so many seconds, for rounds(); 0: no more."""
        return self._ask(Feature.SAMPLING, WRITE, round(seconds * 1000), bytes(20))

    def get(self, feature: Feature, socket: Optional[int] = None, *,
            peer: Union[str, Address, None] = None) -> Any:
        """The value of a feature: of a socket, of a peer, or of the whole stack."""
        flags, identity = _identity(socket, peer)
        return self._ask(feature, flags, 0, identity)

    def set(self, feature: Feature, value: Value, socket: Optional[int] = None) -> Any:
        """Sets a feature by a plain request; the result is the value that is in force then."""
        flags, identity = _identity(socket, None)
        return self._ask(feature, WRITE | flags, value, identity)

    def change(self, feature: Feature, value: Value, socket: Optional[int] = None, *,
               peer: Union[str, Address, None] = None, ttl: int = 0, reason: str = "", dry_run: bool = False,
               ends_with_connection: bool = False) -> Any:
        """Sets a feature by an extended request, for `ttl` seconds or until it is undone; the result is a Changed."""
        flags, identity = _identity(socket, peer)
        value0, value1 = values_for(feature, value)
        options = (DRY_RUN if dry_run else 0) | (ENDS_WITH_CONNECTION if ends_with_connection else 0)
        return self._send(ExtendedRequest(self._next_id(), WRITE | flags, feature, value0, value1, identity, ttl,
                                          options, reason), changed)

    def undo(self, rule: int) -> Any:
        """Puts what a rule changed back to what it was."""
        return self._ask(Feature.UNDO, WRITE, rule, bytes(20))

    def close_socket(self, socket: int) -> Any:
        """Cuts the peer off; the application sees a reset."""
        return self.set(Feature.IS_OPEN, 0, socket)

    def block(self, address: Union[str, Address]) -> Any:
        """Cuts every connection with the peer and lets it in no more."""
        return self._ask(Feature.ADDRESS_BLOCK, WRITE | BY_PEER, 1, peer_identity(address))

    def unblock(self, address: Union[str, Address]) -> Any:
        return self._ask(Feature.ADDRESS_BLOCK, WRITE | BY_PEER, 0, peer_identity(address))

    def allow(self, address: Union[str, Address], on: bool = True) -> Any:
        """Puts a peer on the list of those that no rule touches, or takes it off."""
        return self._ask(Feature.ALLOW, WRITE | BY_PEER, int(on), peer_identity(address))

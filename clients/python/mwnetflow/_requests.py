"""What both clients ask for; each says in its own way how an answer is waited for."""

from __future__ import annotations

import errno
import os
import socket as _socket
import ssl
from pathlib import Path
from typing import Any, Optional, Union

from .wire import BY_PEER, BY_SOCKET, WRITE, Address, Feature, Response, peer_identity, socket_identity

_TIMES = (Feature.SNDTIMEO, Feature.RCVTIMEO)


class RequestError(OSError):
    """The server answered with an error; `errno` says which."""

    def __init__(self, feature: int, status: int) -> None:
        name = Feature(feature).name.lower() if feature in Feature._value2member_map_ else hex(feature)
        super().__init__(status, f"{name}: {os.strerror(status)}")


def value_of(feature: int, response: Response) -> Union[int, float]:
    """What a response says: seconds for times, else a number. Raises RequestError."""
    if response.status != 0:
        raise RequestError(feature, response.status)
    if feature in _TIMES:
        return response.value0 + response.value1 / 1e6
    return response.value0


def values_for(feature: int, value: Union[int, float]) -> tuple[int, int]:
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


class Requests:
    """Every request, in terms of `_ask`, which returns the value or something that leads to it."""

    def _ask(self, feature: int, flags: int, value: Union[int, float], identity: bytes) -> Any:
        raise NotImplementedError

    def monitor(self, on: bool) -> Any:
        """Turns the observations to this client on or off."""
        return self._ask(Feature.MONITOR_ON if on else Feature.MONITOR_OFF, WRITE, 1, bytes(20))

    def sample(self, seconds: float) -> Any:
        """A round of samples of every socket and process each so many seconds, for rounds(); 0: no more."""
        return self._ask(Feature.SAMPLING, WRITE, round(seconds * 1000), bytes(20))

    def get(self, feature: Feature, socket: Optional[int] = None) -> Any:
        """The value of a feature: of a socket, or of the whole stack."""
        if socket is None:
            return self._ask(feature, 0, 0, bytes(20))
        return self._ask(feature, BY_SOCKET, 0, socket_identity(socket))

    def set(self, feature: Feature, value: Union[int, float], socket: Optional[int] = None) -> Any:
        """Sets a feature; the result is the value that is in force then."""
        if socket is None:
            return self._ask(feature, WRITE, value, bytes(20))
        return self._ask(feature, WRITE | BY_SOCKET, value, socket_identity(socket))

    def close_socket(self, socket: int) -> Any:
        """Cuts the peer off; the application sees a reset."""
        return self.set(Feature.IS_OPEN, 0, socket)

    def block(self, address: Union[str, Address]) -> Any:
        """Cuts every connection with the peer and lets it in no more."""
        return self._ask(Feature.ADDRESS_BLOCK, WRITE | BY_PEER, 1, peer_identity(address))

    def unblock(self, address: Union[str, Address]) -> Any:
        return self._ask(Feature.ADDRESS_BLOCK, WRITE | BY_PEER, 0, peer_identity(address))

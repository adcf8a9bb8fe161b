"""The messages of the NetFlow interface, version 1 (docs/netflow.md): values <-> bytes."""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass
from typing import Union

SIG_OBSERVATION = 0xD310
SIG_REQUEST = 0xD320
SIG_RESPONSE = 0xD32F
SIG_FLOW = 0xD341

_ENDPOINT = "I16sH"
_OBSERVATION = struct.Struct(">HIHQQQQq" + _ENDPOINT + _ENDPOINT + "QQQ")
_REQUEST = struct.Struct(">HIHHQQ20s")
_RESPONSE = struct.Struct(">HIIQQ")
_FLOW = struct.Struct(">HIQqHHQQQQ" + _ENDPOINT + _ENDPOINT + "QQII16s")
_LENGTH = {SIG_OBSERVATION: _OBSERVATION.size, SIG_REQUEST: _REQUEST.size, SIG_RESPONSE: _RESPONSE.size}

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


class Kind(enum.IntEnum):
    """What an observation is about."""
    NONE = 0
    CREATE = 1
    BIND = 2
    ACCEPT = 3
    CONNECT = 4
    RECV = 5
    SEND = 6
    CLOSE = 7


class Feature(enum.IntEnum):
    """What can be read or written, of a socket, of a peer or of the whole stack."""
    MONITOR_ON = 0x0001
    MONITOR_OFF = 0x0002
    NONBLOCK = 0x0003
    REUSEADDR = 0x0004
    REUSEPORT = 0x0005
    KEEPALIVE = 0x0006
    DEFER_ACCEPT = 0x0007
    NODELAY = 0x0008
    LIST = 0x0010
    IS_OPEN = 0x0101
    OWNER_RUNNING = 0x0102
    SNDBUF = 0x0109
    RCVBUF = 0x010A
    SNDTIMEO = 0x010B
    RCVTIMEO = 0x010C
    SNDLOWAT = 0x010D
    RCVLOWAT = 0x010E
    ERROR = 0x010F
    CONGESTION = 0x1101
    DELACK_TICKS = 0x1102
    ADDRESS_BLOCK = 0x1103


class Congestion(enum.IntEnum):
    """Values of Feature.CONGESTION."""
    RENO = 0x90
    NEWRENO = 0x91
    CUBIC = 0x92


WRITE, BY_SOCKET, BY_PEER = 1, 2, 4


class ProtocolError(Exception):
    """The other end sent something that is no message."""


@dataclass(frozen=True)
class Endpoint:
    """An address with a port; both are zero as long as they are not known."""
    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class Observation:
    """One call that the stack executed. Times are seconds since 1970; see docs/netflow.md."""
    kind: Kind
    session_start: float
    now: float
    socket: int
    local: Endpoint
    remote: Endpoint
    bytes_in: int
    bytes_out: int
    extra: int


@dataclass(frozen=True)
class Request:
    """A feature request; `identity` is 20 bytes."""
    id: int
    flags: int
    name: int
    value0: int = 0
    value1: int = 0
    identity: bytes = bytes(20)

    def pack(self) -> bytes:
        return _REQUEST.pack(SIG_REQUEST, self.id, self.flags, self.name, self.value0, self.value1,
                             self.identity)


@dataclass(frozen=True)
class Response:
    """The answer to the request with the same id: 0 or an errno, and the value in force."""
    id: int
    status: int
    value0: int
    value1: int


@dataclass(frozen=True)
class Flow:
    """A socket that is open, as it stands. Without a known process, pid is 0."""
    sequence: int
    socket: int
    datagram: bool
    listener: bool
    session_start: float
    last: float
    local: Endpoint
    remote: Endpoint
    bytes_in: int
    bytes_out: int
    pid: int
    uid: int
    command: str


Message = Union[Observation, Response, Flow]


def socket_identity(socket: int) -> bytes:
    return struct.pack(">q12x", socket)


def peer_identity(address: Union[str, Address]) -> bytes:
    address = ipaddress.ip_address(address)
    return struct.pack(">I16s", address.version, address.packed)


def _endpoint(family: int, packed: bytes, port: int) -> Endpoint:
    if family == 4:
        return Endpoint(ipaddress.IPv4Address(packed[:4]), port)
    if family == 6:
        return Endpoint(ipaddress.IPv6Address(packed), port)
    raise ProtocolError(f"address family {family}")


def _observation(data: memoryview) -> Observation:
    (_, _, kind, start, start_ns, now, now_ns, socket, local_af, local, local_port, remote_af, remote,
     remote_port, bytes_in, bytes_out, extra) = _OBSERVATION.unpack(data)
    return Observation(Kind(kind), start + start_ns / 1e9, now + now_ns / 1e9, socket,
                       _endpoint(local_af, local, local_port), _endpoint(remote_af, remote, remote_port),
                       bytes_in, bytes_out, extra)


def _flow(data: memoryview) -> Flow:
    (_, _, sequence, socket, kind, flags, start, start_ns, last, last_ns, local_af, local, local_port, remote_af,
     remote, remote_port, bytes_in, bytes_out, pid, uid, command) = _FLOW.unpack(data[:_FLOW.size])
    return Flow(sequence, socket, kind == 2, bool(flags & 1), start + start_ns / 1e9, last + last_ns / 1e9,
                _endpoint(local_af, local, local_port), _endpoint(remote_af, remote, remote_port),
                bytes_in, bytes_out, pid, uid, command.rstrip(b"\0").decode("ascii", "replace"))


class Decoder:
    """Messages of the server out of a byte stream, however it was cut."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @staticmethod
    def _length(view: memoryview) -> int:
        """Of the message that begins here; 0: it cannot be told yet."""
        if len(view) < 2:
            return 0
        sig = view[0] << 8 | view[1]
        if sig in (SIG_OBSERVATION, SIG_RESPONSE):
            return _LENGTH[sig]
        if sig != SIG_FLOW:
            raise ProtocolError(f"signature {sig:#06x}")
        if len(view) < 6:
            return 0
        length = int.from_bytes(view[2:6], "big")
        if not _FLOW.size <= length <= 65536:
            raise ProtocolError(f"a flow of {length} bytes")
        return length

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises ProtocolError; nothing more comes after it."""
        self._pending += data
        messages: list[Message] = []
        at = 0
        with memoryview(bytes(self._pending)) as view:
            while (length := self._length(view[at:])) and at + length <= len(view):
                message = view[at:at + length]
                sig = message[0] << 8 | message[1]
                if sig == SIG_OBSERVATION:
                    messages.append(_observation(message))
                elif sig == SIG_FLOW:
                    messages.append(_flow(message))
                else:
                    messages.append(Response(*_RESPONSE.unpack(message)[1:]))
                at += length
        del self._pending[:at]
        return messages

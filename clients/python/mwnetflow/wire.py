"""The messages of the NetFlow interface (docs/netflow.md): values <-> bytes."""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

SIG_OBSERVATION = 0xD310
SIG_REQUEST = 0xD320
SIG_RESPONSE = 0xD32F
SIG_EXTENDED_REQUEST = 0xD321
SIG_FLOW = 0xD341
SIG_SAMPLE = 0xD342
SIG_PROCESS_SAMPLE = 0xD343
SIG_ROUND = 0xD344
SIG_RULE = 0xD345
SIG_EXTENDED_OBSERVATION = 0xD346

_ENDPOINT = "I16sH"
_OBSERVATION = struct.Struct(">HIHQQQQq" + _ENDPOINT + _ENDPOINT + "QQQ")
_EXTENDED_OBSERVATION = struct.Struct(">HIQHQQQQq" + _ENDPOINT + _ENDPOINT + "QQQHHII16s")
_REQUEST = struct.Struct(">HIHHQQ20s")
_EXTENDED_REQUEST = struct.Struct(">HIHIHHQQ20sII")
_RESPONSE = struct.Struct(">HIIQQ")
_FLOW = struct.Struct(">HIQqHHQQQQ" + _ENDPOINT + _ENDPOINT + "QQII16s")
_SAMPLE = struct.Struct(">HIQQQqHH" + _ENDPOINT + _ENDPOINT + "II16sQQII5IQQIIIIQII13I7Q")
_PROCESS_SAMPLE = struct.Struct(">HIQII16sQQII")
_ROUND = struct.Struct(">HIQQQQIIQIIIIQQIIQ")
_RULE = struct.Struct(">HIHQIHHHQQq" + _ENDPOINT + "QQQQI")
_LENGTH = {SIG_OBSERVATION: _OBSERVATION.size, SIG_REQUEST: _REQUEST.size, SIG_RESPONSE: _RESPONSE.size}
# Those of version 2 say how long they are: at least this.
_LEAST = {SIG_FLOW: _FLOW.size, SIG_SAMPLE: _SAMPLE.size, SIG_PROCESS_SAMPLE: _PROCESS_SAMPLE.size,
          SIG_ROUND: _ROUND.size, SIG_RULE: _RULE.size + 4,
          SIG_EXTENDED_OBSERVATION: _EXTENDED_OBSERVATION.size}
_NEVER = 0xFFFFFFFF

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


class Kind(enum.IntEnum):
    """What an observation is about. NONE: a connection stands differently now, which no call told."""
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
    SAMPLING = 0x0201
    RULES = 0x0202
    UNDO = 0x0203
    OBSERVATIONS = 0x0204
    IS_OPEN = 0x0101
    OWNER_RUNNING = 0x0102
    SNDBUF = 0x0109
    RCVBUF = 0x010A
    SNDTIMEO = 0x010B
    RCVTIMEO = 0x010C
    SNDLOWAT = 0x010D
    RCVLOWAT = 0x010E
    ERROR = 0x010F
    MIN_RATE_IN = 0x0310
    MIN_RATE_OUT = 0x0311
    PAUSE = 0x0312
    PACING = 0x0313
    CONGESTION = 0x1101
    DELACK_TICKS = 0x1102
    ADDRESS_BLOCK = 0x1103
    PEER_CAP = 0x1314
    ALLOW = 0x1315


class Congestion(enum.IntEnum):
    """Values of Feature.CONGESTION."""
    RENO = 0x90
    NEWRENO = 0x91
    CUBIC = 0x92


class RuleState(enum.IntEnum):
    IN_FORCE = 1
    EXPIRED = 2
    UNDONE = 3
    SOCKET_GONE = 4
    DONE = 5


WRITE, BY_SOCKET, BY_PEER = 1, 2, 4
DRY_RUN, ENDS_WITH_CONNECTION = 1, 2


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


class FlowFlag(enum.IntFlag):
    """What else is true of a socket; from INBOUND on, what is known to have happened to its connection."""
    LISTENER = 1
    LISTENERS_HOLDER = 2
    CLOSE_UNSEEN = 4
    INBOUND = 0x0100
    ESTABLISHED = 0x0200
    PEER_FIN = 0x0400
    OUR_FIN = 0x0800
    PEER_RST = 0x1000
    OUR_RST = 0x2000
    CUT = 0x4000


@dataclass(frozen=True)
class ExtendedObservation(Observation):
    """An observation of version 2. Without a known process, pid is 0."""
    sequence: int
    datagram: bool
    flags: FlowFlag
    pid: int
    uid: int
    command: str


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
class ExtendedRequest(Request):
    """A request of version 2; `ttl` in seconds, 0: until it is undone."""
    ttl: int = 0
    options: int = 0
    reason: str = ""

    def pack(self) -> bytes:
        reason = self.reason.encode()
        return _EXTENDED_REQUEST.pack(SIG_EXTENDED_REQUEST, _EXTENDED_REQUEST.size + len(reason),
                                      _EXTENDED_REQUEST.size, self.id, self.flags, self.name, self.value0,
                                      self.value1, self.identity, self.ttl, self.options) + reason


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
    flags: FlowFlag = FlowFlag(0)


class SampleFlag(enum.IntFlag):
    """What else is true of a sampled socket."""
    LISTENER = 1
    INBOUND = 2
    TCP = 4
    PAUSED = 8
    PACED = 16
    MIN_RATE = 32
    ALLOWED = 64


class Sample(NamedTuple):
    """A socket as it stands; `Sample` in src/netflow/wire.h says what the members are.

    Times are seconds: `now` since 1970, `mono` of the monotonic clock, ages before now (None: it
    never happened); times with a unit in their name are in that unit.
    """
    sequence: int
    now: float
    mono: float
    socket: int
    datagram: bool
    flags: SampleFlag
    local: Endpoint
    remote: Endpoint
    pid: int
    uid: int
    command: str
    bytes_in: int
    bytes_out: int
    calls_in: int
    calls_out: int
    age: Optional[float]
    first_in: Optional[float]
    last_in: Optional[float]
    first_out: Optional[float]
    last_out: Optional[float]
    rate_in: int
    rate_out: int
    unread: int
    unsent: int
    waiting_threads: int
    waiting_ms: int
    worker_us: int
    queue: int
    backlog: int
    tcp_state: int
    rtt_us: int
    rttvar_us: int
    min_rtt_us: int
    snd_wnd: int
    notsent: int
    unacked: int
    total_retrans: int
    probes: int
    backoff: int
    last_data_recv_ms: int
    last_data_sent_ms: int
    last_ack_recv_ms: int
    bytes_acked: int
    bytes_received: int
    bytes_retrans: int
    busy_us: int
    rwnd_limited_us: int
    sndbuf_limited_us: int
    delivery_rate: int


class ProcessSample(NamedTuple):
    """A process of the session."""
    sequence: int
    pid: int
    uid: int
    command: str
    rss_bytes: int
    cpu_us: int
    threads: int
    fds: int


class Round(NamedTuple):
    """The end of a round of samples, and the health of the stack."""
    sequence: int
    now: float
    mono: float
    round: int
    sockets: int
    processes: int
    missed: int
    ins: int
    ins_pid: int
    heartbeat: Optional[float]
    slots: int
    ins_rss_bytes: int
    ins_cpu_us: int
    ins_fds: int
    ins_restarts: int
    telemetry_dropped: int


class SampledRound(NamedTuple):
    """Everything that one round said."""
    round: Round
    samples: list[Sample]
    processes: list[ProcessSample]


@dataclass(frozen=True)
class Rule:
    """A change that an engine made. `until`: when it ended or will end, 0: never; `socket`: 0 if it is about none."""
    sequence: int
    id: int
    name: int
    flags: int
    state: RuleState
    value0: int
    value1: int
    socket: int
    peer: Endpoint
    since: float
    until: float
    hits: int
    engine: str
    reason: str


Message = Union[Observation, Response, Flow, Sample, ProcessSample, Round, Rule]


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


def _extended_observation(data: memoryview) -> ExtendedObservation:
    (_, _, sequence, kind, start, start_ns, now, now_ns, socket, local_af, local, local_port, remote_af, remote,
     remote_port, bytes_in, bytes_out, extra, family, flags, pid, uid,
     command) = _EXTENDED_OBSERVATION.unpack(data[:_EXTENDED_OBSERVATION.size])
    return ExtendedObservation(Kind(kind), start + start_ns / 1e9, now + now_ns / 1e9, socket,
                               _endpoint(local_af, local, local_port), _endpoint(remote_af, remote, remote_port),
                               bytes_in, bytes_out, extra, sequence, family == 2, FlowFlag(flags), pid, uid,
                               _text(command))


def _flow(data: memoryview) -> Flow:
    (_, _, sequence, socket, kind, flags, start, start_ns, last, last_ns, local_af, local, local_port, remote_af,
     remote, remote_port, bytes_in, bytes_out, pid, uid, command) = _FLOW.unpack(data[:_FLOW.size])
    return Flow(sequence, socket, kind == 2, bool(flags & 1), start + start_ns / 1e9, last + last_ns / 1e9,
                _endpoint(local_af, local, local_port), _endpoint(remote_af, remote, remote_port),
                bytes_in, bytes_out, pid, uid, _text(command), FlowFlag(flags))


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("ascii", "replace")


def _age(milliseconds: int) -> Optional[float]:
    return None if milliseconds == _NEVER else milliseconds / 1e3


def _sample(data: memoryview) -> Sample:
    (_, _, sequence, now, mono, socket, kind, flags, local_af, local, local_port, remote_af, remote, remote_port,
     pid, uid, command, bytes_in, bytes_out, calls_in, calls_out, age, first_in, last_in, first_out, last_out,
     *rest) = _SAMPLE.unpack(data[:_SAMPLE.size])
    return Sample(sequence, now / 1e9, mono / 1e9, socket, kind == 2, SampleFlag(flags),
                  _endpoint(local_af, local, local_port), _endpoint(remote_af, remote, remote_port), pid, uid,
                  _text(command), bytes_in, bytes_out, calls_in, calls_out, _age(age), _age(first_in),
                  _age(last_in), _age(first_out), _age(last_out), *rest)


def _process_sample(data: memoryview) -> ProcessSample:
    _, _, sequence, pid, uid, command, *rest = _PROCESS_SAMPLE.unpack(data[:_PROCESS_SAMPLE.size])
    return ProcessSample(sequence, pid, uid, _text(command), *rest)


def _round(data: memoryview) -> Round:
    (_, _, sequence, now, mono, number, sockets, processes, missed, ins, ins_pid, heartbeat,
     *rest) = _ROUND.unpack(data[:_ROUND.size])
    return Round(sequence, now / 1e9, mono / 1e9, number, sockets, processes, missed, ins, ins_pid,
                 _age(heartbeat), *rest)


class Rounds:
    """Puts samples together to the rounds that they came in."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._processes: list[ProcessSample] = []

    def add(self, message: Union[Sample, ProcessSample, Round]) -> Optional[SampledRound]:
        """The round that ends with this message, if one does."""
        if isinstance(message, Sample):
            self._samples.append(message)
            return None
        if isinstance(message, ProcessSample):
            self._processes.append(message)
            return None
        whole = SampledRound(message, self._samples, self._processes)
        self._samples, self._processes = [], []
        return whole


def _sized_text(data: memoryview) -> tuple[str, memoryview]:
    length = int.from_bytes(data[:2], "big")
    if len(data) < 2 + length:
        raise ProtocolError("a text that is longer than its message")
    return bytes(data[2:2 + length]).decode("utf-8", "replace"), data[2 + length:]


def _rule(data: memoryview) -> Rule:
    (_, _, fixed, sequence, number, name, flags, state, value0, value1, socket, family, peer, port, since, since_ns,
     until, until_ns, hits) = _RULE.unpack(data[:_RULE.size])
    if fixed < _RULE.size:
        raise ProtocolError(f"a rule of {fixed} bytes")
    engine, rest = _sized_text(data[fixed:])
    reason, _ = _sized_text(rest)
    return Rule(sequence, number, name, flags, RuleState(state), value0, value1, socket,
                _endpoint(family, peer, port), since + since_ns / 1e9, until + until_ns / 1e9, hits, engine, reason)


_DECODE = {SIG_OBSERVATION: _observation, SIG_EXTENDED_OBSERVATION: _extended_observation, SIG_FLOW: _flow,
           SIG_SAMPLE: _sample, SIG_PROCESS_SAMPLE: _process_sample, SIG_ROUND: _round, SIG_RULE: _rule, SIG_RESPONSE: lambda data: Response(*_RESPONSE.unpack(data)[1:])}


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
        if sig not in _LEAST:
            raise ProtocolError(f"signature {sig:#06x}")
        if len(view) < 6:
            return 0
        length = int.from_bytes(view[2:6], "big")
        if not _LEAST[sig] <= length <= 65536:
            raise ProtocolError(f"a message {sig:#06x} of {length} bytes")
        return length

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises ProtocolError; nothing more comes after it."""
        self._pending += data
        messages: list[Message] = []
        at = 0
        with memoryview(bytes(self._pending)) as view:
            while (length := self._length(view[at:])) and at + length <= len(view):
                message = view[at:at + length]
                messages.append(_DECODE[message[0] << 8 | message[1]](message))
                at += length
        del self._pending[:at]
        return messages

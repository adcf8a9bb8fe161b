"""Runs one script of socket calls and returns what every call printed.

purpose     The oracle of the differential tests is the kernel: a script holds no expectations, it
            is run natively and through MwComms, and the two transcripts must be equal.
language    One call a line: [ACTOR:] [VARIABLE =] CALL ARGUMENTS. See README.md beside this file.
processes   `p` is the program under test; `q` its peer, either a plain process of its own or, in
            the variant `same`, more threads of `p`; other names are made by fork, vfork_exec or
            spawn. A digit after the name selects a thread: p2, q3.
"""

import os
import re
import select
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from mwtest import build, netns

# Bounds for what hangs; a starved machine needs far less. An agent's own patience is shorter.
REPLY_SECONDS = 90
_QUIET_SECONDS = 60
_END_SECONDS = 30
_LINE = re.compile(r"(?:(?P<actor>[a-z]+\d*)(?P<mark>&?): *)?"
                   r"(?:(?P<out>[a-z]\w*(?:,[a-z]\w*)*) = )?(?P<call>.*)")
_MAKES_PROCESS = ("fork", "vfork_exec", "spawn")
_NAMES_ADDRESS = ("getsockname", "getpeername", "recvfrom")
# All threads of a run must be seen asleep this often in a row before it counts as quiet.
_ASLEEP_SAMPLES = 8
_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Variant:
    peer: str  # plain, same
    link: str  # accepted, connected: which end of %link the program under test holds

    def __str__(self) -> str:
        return f"{self.peer}-{self.link}"


def variants(path: Path) -> list:
    """The ways in which a script is run; `# only: WORD` restricts them."""
    text = path.read_text()
    only = re.search(r"^# only: (.*)$", text, re.M)
    if not re.search(r"^(q\d*&?:|%)", text, re.M):
        return [Variant("plain", "accepted")]
    all_of_them = [Variant("plain", "accepted"), Variant("same", "accepted")]
    if re.search(r"^%link", text, re.M):
        all_of_them.insert(1, Variant("plain", "connected"))
    if only is None:
        return all_of_them
    return [one for one in all_of_them if all(w in str(one).split("-") for w in only[1].split())]


class ScriptFailure(Exception):
    """The script cannot go on; its transcript so far is kept."""


@dataclass
class _Process:
    requests: int
    replies: int
    buffer: bytes = b""
    lines: dict = field(default_factory=dict)  # request id -> reply
    threads: dict = field(default_factory=dict)  # request id -> (pid, tid)


def _encode(word: str) -> str:
    """A quoted literal becomes x:HEX."""
    if not word.startswith('"'):
        return word
    data = word[1:-1].encode().decode("unicode_escape").encode("latin-1")
    return "x:" + data.hex()


def _split(call: str) -> list:
    lexer = shlex.shlex(call, posix=False)
    lexer.whitespace_split = True
    lexer.quotes = '"'
    lexer.commenters = "#"
    return list(lexer)


def _link(variant: Variant, words: list) -> list:
    """%link S C [inet6]: a TCP connection, S in p and C in q."""
    mine, peer = words[1:3]
    family, host = ("AF_INET6", "[::1]:0") if "inet6" in words else ("AF_INET", "127.0.0.1:0")
    listener, client = ("p", "q") if variant.link == "accepted" else ("q", "p")
    accepted, connected = (mine, peer) if variant.link == "accepted" else (peer, mine)
    return [f"{listener}: zl = socket {family} SOCK_STREAM",
            f"{listener}: bind zl {host}",
            f"{listener}: listen zl 8",
            f"{listener}: za = getsockname zl",
            f"{client}: {connected} = socket {family} SOCK_STREAM",
            f"{client}: connect {connected} za",
            f"{listener}: {accepted} = accept zl",
            f"{listener}: close zl"]


def _udp(words: list) -> list:
    """%udp S C [inet6]: two bound UDP sockets, S in p with address sa, C in q with address ca."""
    family, host = ("AF_INET6", "[::1]:0") if "inet6" in words else ("AF_INET", "127.0.0.1:0")
    lines = []
    for actor, name in (("p", words[1]), ("q", words[2])):
        lines += [f"{actor}: {name} = socket {family} SOCK_DGRAM",
                  f"{actor}: bind {name} {host}",
                  f"{actor}: {name}a = getsockname {name}"]
    return lines


class Runner:
    """One run of one script in one variant and mode, inside a network namespace."""

    def __init__(self, path: Path, variant: Variant, mode: str, namespace, workers: int = None) -> None:
        self._path = path
        self._variant = variant
        self._mode = mode
        self._workers = workers
        self._namespace = namespace
        self._processes = {}
        self._variables = {"DIR": ""}
        self._labels = {}  # port number -> label
        self._pending = {}
        self._children = []
        self._next_id = 1
        self.transcript = []
        self.log = ""

    def run(self) -> list:
        with tempfile.TemporaryDirectory(prefix="mwdiff") as directory:
            self._directory = Path(directory)
            self._directory.chmod(0o777)
            self._variables["DIR"] = directory
            log = open(self._directory / "log", "w+b")
            self._log_file = log
            self._ports = netns.EphemeralPorts(self._namespace)
            try:
                self._start("p", self._mode)
                if self._variant.peer == "plain":
                    self._start("q", "native")
                self._execute(self._lines())
            except ScriptFailure as failure:
                self.transcript.append(f"STOPPED {failure}")
            finally:
                self._end()
                self._ports.close()
                log.seek(0)
                self.log = log.read().decode(errors="replace")
                log.close()
        return self.transcript

    def _lines(self):
        for number, raw in enumerate(self._path.read_text().splitlines(), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("%link"):
                expansion = _link(self._variant, line.split())
            elif line.startswith("%udp"):
                expansion = _udp(line.split())
            else:
                expansion = [line]
            for one in expansion:
                yield number, one

    # -- processes

    def _make_pipes(self, name: str) -> None:
        ends = []
        for suffix in ("req", "rep"):
            path = self._directory / f"{name}.{suffix}"
            os.mkfifo(path, 0o666)
            path.chmod(0o666)
            # Both ways, so that opening never blocks and a restart of the peer is no end of file.
            ends.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        self._processes[name] = _Process(*ends)

    def _start(self, name: str, mode: str) -> None:
        self._make_pipes(name)
        command = build.wrap(mode, [build.program("sockagent"), self._directory, name], workers=self._workers)
        self._children.append(subprocess.Popen(
            self._namespace.wrap(command), stdin=subprocess.DEVNULL, stdout=self._log_file,
            stderr=self._log_file, start_new_session=True))
        self._reply(name, 0)

    def _end(self) -> None:
        for process in self._processes.values():
            os.write(process.requests, b"quit\n")
        for child in self._children:
            try:
                child.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.transcript.append("STOPPED the process did not end")
            try:
                os.killpg(child.pid, 9)
            except ProcessLookupError:
                pass  # the group has ended, as it should
            child.wait(_END_SECONDS)
        for process in self._processes.values():
            os.close(process.requests)
            os.close(process.replies)

    def _where(self, actor: str) -> tuple:
        process = actor.rstrip("0123456789")
        thread = actor
        if process == "q" and self._variant.peer == "same":
            process = "p"
        if process not in self._processes:
            raise ScriptFailure(f"no process {process}")
        return process, thread

    # -- requests and replies

    def _pump(self, name: str, seconds: float) -> bool:
        process = self._processes[name]
        if not select.select([process.replies], [], [], seconds)[0]:
            return False
        process.buffer += os.read(process.replies, 1 << 20)
        *complete, process.buffer = process.buffer.split(b"\n")
        for line in complete:
            identity, _, text = line.decode().partition(" ")
            if text.startswith("@ "):
                process.threads[int(identity)] = tuple(map(int, text.split()[1:]))
            else:
                process.lines[int(identity)] = text
        return True

    def _reply(self, name: str, identity: int) -> str:
        process = self._processes[name]
        limit = time.monotonic() + REPLY_SECONDS
        while identity not in process.lines:
            left = limit - time.monotonic()
            if left <= 0:
                raise ScriptFailure("no reply in time: the call hangs, or its process has died")
            self._pump(name, left)
        return process.lines.pop(identity)

    def _send(self, actor: str, words: list) -> tuple:
        name, thread = self._where(actor)
        identity = self._next_id
        self._next_id += 1
        line = f"{identity} {thread} {' '.join(words)}\n"
        os.write(self._processes[name].requests, line.encode())
        return name, identity

    def _all_asleep(self) -> bool:
        """Whether no thread of this run, whichever program it belongs to, has anything to do."""
        pids = [child.pid for child in self._children]
        while pids:
            tasks = Path(f"/proc/{pids.pop()}/task")
            try:
                for task in tasks.iterdir():
                    if (task / "stat").read_text().rpartition(")")[2].split()[0] not in "SZ":
                        return False
                    pids += (task / "children").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                return False  # one has just ended
        return True

    def _quiet(self, waiting=lambda: True) -> bool:
        """Waits until all threads sleep; false as soon as `waiting` is."""
        asleep = 0
        limit = time.monotonic() + _QUIET_SECONDS
        while asleep < _ASLEEP_SAMPLES:
            if not waiting():
                return False
            if time.monotonic() > limit:
                raise ScriptFailure("the processes do not come to rest")
            time.sleep(_SAMPLE_SECONDS)
            asleep = asleep + 1 if self._all_asleep() else 0
        return True

    def _blocked(self, actor: str) -> str:
        """Whether the call in flight sleeps: everything does, and there is no reply.

        That its own thread sleeps is not enough: it may wait for an INS that has no processor.
        """
        name, identity, _ = self._pending[actor]
        process = self._processes[name]

        def waiting() -> bool:
            while self._pump(name, 0):
                pass
            return identity not in process.lines

        # The last look comes after the last sample.
        return "yes" if self._quiet(waiting) and waiting() else "no"

    def _fill(self, actor: str, words: list) -> str:
        """Repeats `fill` until everything between the two ends is full and at rest."""
        total = 0
        while True:
            reply = self._reply(*self._send(actor, words))
            more = re.fullmatch(r"full=1 hidden=(\d+)", reply)
            if more is None:
                return reply
            total += int(more[1])
            if int(more[1]) == 0:
                return f"full=1 hidden={total}"
            self._quiet()

    # -- lines

    def _resolve(self, word: str) -> str:
        """Replaces a variable, also as FD:EVENTS, key=VARIABLE and HOST:%VARIABLE."""
        if word.startswith(("x:", "pat:", "rep:", '"')):
            return _encode(word)
        if "=" in word:
            key, _, value = word.partition("=")
            return f"{key}=" + ",".join(self._resolve(one) for one in value.split(","))
        if ":%" in word:
            host, _, variable = word.partition(":%")
            return f"{host}:{str(self._variables[variable]).rpartition(':')[2]}"
        if word.startswith(("unix:", "/")):
            return word.replace("/DIR", self._variables["DIR"])
        if word in self._variables:
            return str(self._variables[word])
        name, colon, rest = word.partition(":")
        if colon and name in self._variables:
            return f"{self._variables[name]}:{rest}"
        return word

    def _assign(self, outputs: str, call: str, reply: str) -> None:
        fields = dict(one.split("=", 1) for one in reply.split() if "=" in one[1:])
        names = outputs.split(",")
        if "fd1" in fields and len(names) == 2:
            values = [fields["fd1"], fields["fd2"]]
        elif "hidden" in fields:
            values = [fields["hidden"]]
        elif call in _NAMES_ADDRESS and "addr" in fields:
            values = [fields["addr"]]
        elif "fd" in fields:
            values = [fields["fd"]]
        else:
            match = re.match(r"= (-?\d+)", reply)
            values = [match[1] if match else "-1"]
        self._variables.update(zip(names, values))

    def _normalise(self, reply: str) -> str:
        def port(match):
            number = match[2]
            if int(number) == 0:
                return match[0]
            return f"{match[1]}:P{self._labels.setdefault(number, len(self._labels) + 1)}"
        reply = re.sub(r"((?:addr|pktinfo)=\S*):(\d+)(?= |$)", port, reply)
        return re.sub(r" ?hidden=\d+", "", reply)

    def _record(self, number: int, line: str, reply: str) -> None:
        self.transcript.append(f"{number}: {line} -> {self._normalise(reply)}")

    def _execute(self, lines) -> None:
        for number, line in lines:
            # A number is one socket's, so that it can be its label.
            self._ports.advance()
            match = _LINE.fullmatch(line)
            actor = match["actor"] or "p"
            words = _split(match["call"])
            call = words[0]
            if call == "finish":
                name, identity, outputs = self._pending.pop(actor)
                reply = self._reply(name, identity)
                self._record(number, line, reply)
                if outputs:
                    self._assign(outputs, "finish", reply)
                continue
            if call == "blocked":
                self._record(number, line, self._blocked(actor))
                continue
            if call in _MAKES_PROCESS:
                self._make_pipes(words[1])
            dies = words[-1] == "!"
            resolved = [call] + [self._resolve(word) for word in words[1:] if word != "!"]
            if call == "exec":
                resolved.append(self._where(actor)[0])
            if call == "fill":
                reply = self._fill(actor, resolved)
            else:
                name, identity = self._send(actor, resolved)
                if dies:
                    continue
                if match["mark"]:
                    self._pending[actor] = (name, identity, match["out"])
                    continue
                reply = self._reply(name, identity)
            if call in _MAKES_PROCESS and not reply.startswith("= -1"):
                self._reply(words[1], 0)
            self._record(number, line, reply)
            if match["out"]:
                self._assign(match["out"], call, reply)

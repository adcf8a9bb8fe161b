"""load.py ROLE... - what honest people do, an availability probe, and a control to judge the machine by.

purpose     One role is one process in one namespace; each writes a JSON line an event. Times are CLOCK_MONOTONIC
            seconds, which all processes of a machine share.
roles       honest: fast clients, and slow ones that always finish: a phone on a bad link, a slow upload, a slow
            download. The pace is made here, by token buckets, so that it needs nothing of the kernel. Long polls and
            event streams, which wait for the server. Browsers, all behind one address, with connections that stay open
            between clicks.
            probe: like a monitoring system, a new connection every 100 ms; asks the control as well.
            control: a server that answers at once and is not attacked. If it is slow, the machine was.
            backend: what a web server passes /poll and /events on to, over a socket of the file system.
end         SIGTERM: nothing new starts, what runs may finish.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import sys
import time

PROBE_INTERVAL = 0.1
PROBE_TIMEOUT = 2.0
STREAM_SECONDS = 15.0
PATIENCE = {"fast": 3.0, "phone": 15.0, "upload": 18.0, "download": 18.0, "browser": 5.0, "poll": 20.0,
            "events": STREAM_SECONDS + 10}
UPLOAD_BYTES, UPLOAD_RATE = 32_000, 5_000
DOWNLOAD_RATE = 60_000
PHONE_RATE = 20_000
FAST_PAUSE, FAST_REQUESTS = 0.15, 4
SLOW_PAUSE = 0.5
BROWSER_REQUESTS = 2          # on each connection, a click
BROWSER_PAUSE = (2.0, 6.0)    # between clicks; a server that closes idle connections sooner may do so
POLL_SECONDS = (3.0, 8.0)     # until there is news
POLL_REQUESTS = 3             # one after the other on a connection
EVENT_SECONDS = 3.0           # between two of a stream


class Cut(Exception):
    """The other side ended the connection before the answer was complete."""


class Rejected(Exception):
    """An answer, but not the one that was asked for."""


class Stale(Exception):
    """The server closed an idle connection as the next request went out: a client then asks again on a new one."""


class Bucket:
    """Lets `rate` bytes a second pass, in bursts of at most a quarter of a second."""

    def __init__(self, rate: int) -> None:
        self._rate, self._burst = rate, rate / 4
        self._tokens, self._then = self._burst, time.monotonic()

    async def take(self, count: int) -> None:
        while True:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
            self._then = now
            if self._tokens >= min(count, self._burst):
                self._tokens -= count
                return
            await asyncio.sleep((min(count, self._burst) - self._tokens) / self._rate)


class Connection:
    """A plain HTTP/1.1 client over one connection."""

    def __init__(self, host: str, port: int, source: str, receive_buffer: int = 0) -> None:
        self._address, self._source, self._receive_buffer = (host, port), source, receive_buffer
        self._answers = 0
        self.reader = self.writer = None

    async def open(self) -> None:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if self._receive_buffer:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            # The port is chosen with the connection: a client address may use each of its ports for many servers.
            one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            one.bind((self._source, 0))
            await asyncio.get_running_loop().sock_connect(one, self._address)
            self.reader, self.writer = await asyncio.open_connection(sock=one, limit=8192)
        except BaseException:
            one.close()
            raise

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    async def send(self, data: bytes, bucket: Bucket = None, piece: int = 1000) -> None:
        step = piece if bucket else len(data)
        for start in range(0, len(data), step):
            part = data[start:start + step]
            if bucket:
                await bucket.take(len(part))
            try:
                self.writer.write(part)
                await self.writer.drain()
            except ConnectionError as error:
                if self._answers and start == 0:
                    raise Stale from error
                raise

    async def _head(self) -> bytes:
        """The head of an answer, which has to be a good one."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if self._answers and not getattr(error, "partial", b""):
                raise Stale from error
            raise Cut("end of stream") from error
        self._answers += 1
        status = int(head.split(b" ", 2)[1])
        if status != 200:
            raise Cut("408") if status == 408 else Rejected(str(status))
        return head

    async def stream(self, seconds: float) -> None:
        """Reads an answer that does not end, for so long."""
        await self._head()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            patience = 3 * EVENT_SECONDS
            try:
                chunk = await asyncio.wait_for(self.reader.read(4096), min(left, patience))
            except asyncio.TimeoutError:
                if left > patience:
                    raise Rejected("no event") from None
                return  # none was due just then
            if not chunk:
                raise Cut("end of stream")

    async def answer(self, wanted: int, bucket: Bucket = None) -> None:
        """Reads one answer; its body must be `wanted` bytes long (any length if negative)."""
        head = await self._head()
        left = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                left = int(line.split(b":")[1])
        if wanted >= 0 and left != wanted:
            raise Rejected(f"{left} bytes")
        while left:
            if bucket:
                await bucket.take(min(left, 4000))
            chunk = await self.reader.read(min(left, 4000))
            if not chunk:
                raise Cut("end of stream")
            left -= len(chunk)


def head(verb: str, path: str, host: str, *more: str) -> bytes:
    return "\r\n".join([f"{verb} {path} HTTP/1.1", f"Host: {host}", "User-Agent: honest", "Accept: */*",
                        *more, "", ""]).encode()


async def fate_of(work, seconds: float) -> str:
    """What becomes of a request: served, or in which way not."""
    try:
        await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        return "timeout"
    except (Cut, ConnectionResetError, BrokenPipeError):
        return "cut"
    except Rejected as error:
        return f"status {error}"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return f"errno {error.errno}"
    return "served"


class Honest:
    """The honest clients, each with an address of its own."""

    def __init__(self, options, write) -> None:
        self._options, self._write = options, write
        self._sources = itertools.cycle(options.source)
        self._numbers = itertools.count()
        self.stopping = asyncio.Event()

    def clients(self) -> list:
        options = self._options
        kinds = [(self._fast, options.fast), (self._phone, options.slow), (self._upload, options.slow),
                 (self._download, options.slow), (self._poll, options.polls), (self._events, options.streams)]
        own = [self._repeat(one, next(self._sources), number / count)
               for one, count in kinds for number in range(count)]
        return own + [self._repeat(self._browser, options.shared_source, number / options.browsers)
                      for number in range(options.browsers)]

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            pass  # the usual case: nobody stops us

    async def _repeat(self, one, source: str, offset: float) -> None:
        await self._pause(offset)  # so that the clients are not in step
        while not self.stopping.is_set():
            await one(source)

    async def _attempt(self, kind: str, work, connection: int, opened) -> str:
        """Runs one request and writes down what became of it, unless it is "stale"."""
        start = time.monotonic()
        try:
            fate = await fate_of(work(), PATIENCE[kind])
        except Stale:
            return "stale"
        self._write({"kind": kind, "t": start, "end": time.monotonic(), "fate": fate,
                     "connection": connection, "connected": opened()})
        return fate

    async def _session(self, kind: str, source: str, requests: list, pause: float, buffer: int = 0) -> None:
        """One connection; `requests` are coroutine functions that take it."""
        options, number = self._options, next(self._numbers)
        line = Connection(options.host, options.port, source, buffer)
        try:
            for index, request in enumerate(requests):
                async def work(index=index, request=request):
                    if index == 0:
                        await line.open()
                    await request(line)
                if await self._attempt(kind, work, number, lambda: line.writer is not None) != "served":
                    break
                if index + 1 < len(requests):
                    await self._pause(pause)
                if self.stopping.is_set():
                    break
        finally:
            line.close()
        await self._pause(pause)

    async def _fast(self, source: str) -> None:
        """Four pages on one connection, as a browser does."""
        async def page(line):
            await line.send(head("GET", "/page.txt", self._options.host))
            await line.answer(self._options.page)
        await self._session("fast", source, [page] * FAST_REQUESTS, FAST_PAUSE)

    async def _phone(self, source: str) -> None:
        """A header of 300 bytes in pieces with irregular gaps, and an answer that stalls now and then."""
        async def page(line):
            data = head("GET", "/page.txt", self._options.host, f"Cookie: id={'x' * 200}")
            while data:
                size = random.randint(20, 80)
                await line.send(data[:size])
                data = data[size:]
                await asyncio.sleep(random.uniform(0.05, 0.7))
            await line.answer(self._options.page, Bucket(PHONE_RATE))
        await self._session("phone", source, [page], SLOW_PAUSE, 4096)

    async def _upload(self, source: str) -> None:
        async def form(line):
            await line.send(head("POST", "/upload.txt", self._options.host, f"Content-Length: {UPLOAD_BYTES}",
                                 "Content-Type: application/octet-stream"))
            await line.send(b"u" * UPLOAD_BYTES, Bucket(UPLOAD_RATE))
            await line.answer(-1)
        await self._session("upload", source, [form], SLOW_PAUSE)

    async def _download(self, source: str) -> None:
        async def file(line):
            await line.send(head("GET", "/file.bin", self._options.host))
            await line.answer(self._options.file, Bucket(DOWNLOAD_RATE))
        await self._session("download", source, [file], SLOW_PAUSE, 16384)

    async def _poll(self, source: str) -> None:
        """Asks for news, which takes a while, and again."""
        async def news(line):
            await line.send(head("GET", "/poll", self._options.host))
            await line.answer(-1)
        await self._session("poll", source, [news] * POLL_REQUESTS, FAST_PAUSE)

    async def _events(self, source: str) -> None:
        """The server sends now and then; the client only listens, and leaves in the end."""
        async def listen(line):
            await line.send(head("GET", "/events", self._options.host))
            await line.stream(STREAM_SECONDS)
        await self._session("events", source, [listen], SLOW_PAUSE)

    async def _browser(self, source: str) -> None:
        """One person: a click asks for the parts of a page on all connections, which stay open while they read."""
        lines = [None] * self._options.per_browser
        try:
            while not self.stopping.is_set():
                await asyncio.gather(*(self._parts(source, lines, index) for index in range(len(lines))))
                await self._pause(random.uniform(*BROWSER_PAUSE))
        finally:
            for one in lines:
                if one is not None:
                    one[0].close()

    async def _parts(self, source: str, lines: list, index: int) -> None:
        options = self._options
        for _ in range(BROWSER_REQUESTS):
            fate = "stale"
            while fate == "stale":  # the server has closed it between clicks: once more on a new one
                if lines[index] is None:
                    lines[index] = Connection(options.host, options.port, source), next(self._numbers)
                line, number = lines[index]

                async def work(line=line):
                    if line.writer is None:
                        await line.open()
                    await line.send(head("GET", "/page.txt", options.host))
                    await line.answer(options.page)
                fate = await self._attempt("browser", work, number, lambda line=line: line.writer is not None)
                if fate != "served":
                    line.close()
                    lines[index] = None
            if fate != "served" or self.stopping.is_set():
                return


async def probe_once(kind: str, host: str, port: int, source: str, write) -> None:
    """Time to the first byte of a small page on a new connection."""
    start = time.monotonic()
    line = Connection(host, port, source)

    async def ask():
        await line.open()
        await line.send(head("GET", "/probe.txt", host, "Connection: close"))
        first = await line.reader.read(12)
        if not first:
            raise Cut("end of stream")
        if first[9:12] != b"200":
            raise Rejected(first[9:12].decode(errors="replace"))

    try:
        fate = await fate_of(ask(), PROBE_TIMEOUT)
    finally:
        line.close()
    write({"kind": kind, "t": start, "ms": (time.monotonic() - start) * 1e3, "fate": fate})


async def run_probes(options, write, stopping: asyncio.Event) -> None:
    running, due = set(), time.monotonic()
    while not stopping.is_set():
        for kind, host, port in (("probe", options.host, options.port),
                                 ("control", options.control_host, options.control_port)):
            task = asyncio.create_task(probe_once(kind, host, port, options.source[0], write))
            running.add(task)
            task.add_done_callback(running.discard)
        due = max(due + PROBE_INTERVAL, time.monotonic())  # no burst to catch up
        await asyncio.sleep(due - time.monotonic())
    await asyncio.gather(*running)


async def run_control(options, stopping: asyncio.Event) -> None:
    async def serve(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a client that went away
        finally:
            writer.close()
    async with await asyncio.start_server(serve, options.host, options.port, backlog=512):
        await stopping.wait()


async def run_backend(options, stopping: asyncio.Event) -> None:
    async def serve(reader, writer):
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            if b" /poll" in asked.split(b"\r\n")[0]:
                await asyncio.sleep(random.uniform(*POLL_SECONDS))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnews")
                await writer.drain()
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            while True:
                writer.write(b"data: something happened\n\n")
                await writer.drain()
                await asyncio.sleep(EVENT_SECONDS)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the web server has no use for it any more
        finally:
            writer.close()
    async with await asyncio.start_unix_server(serve, options.socket, backlog=512):
        os.chmod(options.socket, 0o666)  # servers drop to users of their own
        await stopping.wait()


async def run(options) -> None:
    def write(event: dict) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    if options.role == "control":
        await run_control(options, stopping)
    elif options.role == "backend":
        await run_backend(options, stopping)
    elif options.role == "probe":
        await run_probes(options, write, stopping)
    else:
        honest = Honest(options, write)
        honest.stopping = stopping
        await asyncio.gather(*honest.clients())


def main() -> int:
    parser = argparse.ArgumentParser(prog="load.py", description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=["honest", "probe", "control", "backend"])
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--socket", help="of the backend")
    parser.add_argument("--source", action="append", help="address to come from; several: taken in turn")
    parser.add_argument("--control-host")
    parser.add_argument("--control-port", type=int)
    parser.add_argument("--fast", type=int, help="how many fast clients")
    parser.add_argument("--slow", type=int, help="how many slow clients of each kind")
    parser.add_argument("--polls", type=int, help="how many clients that wait for news")
    parser.add_argument("--streams", type=int, help="how many clients that listen to events")
    parser.add_argument("--browsers", type=int, help="how many people behind one address")
    parser.add_argument("--per-browser", type=int, help="connections that each of them has")
    parser.add_argument("--shared-source", help="the address that they share")
    parser.add_argument("--page", type=int, help="bytes of /page.txt")
    parser.add_argument("--file", type=int, help="bytes of /file.bin")
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

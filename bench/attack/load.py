"""load.py ROLE... - what honest people do, an availability probe, and a control to judge the machine by.

purpose     One role is one process in one namespace; each writes a JSON line an event. Times are CLOCK_MONOTONIC
            seconds, which all processes of a machine share.
roles       honest: fast clients, and slow ones that always finish: a phone on a bad link, a slow upload, a slow
            download. The pace is made here, by token buckets, so that it needs nothing of the kernel.
            probe: like a monitoring system, a new connection every 100 ms; asks the control as well.
            control: a server that answers at once and is not attacked. If it is slow, the machine was.
end         SIGTERM: nothing new starts, what runs may finish.
"""

import argparse
import asyncio
import itertools
import json
import random
import signal
import socket
import sys
import time

PROBE_INTERVAL = 0.1
PROBE_TIMEOUT = 2.0
PATIENCE = {"fast": 3.0, "phone": 15.0, "upload": 18.0, "download": 18.0}
UPLOAD_BYTES, UPLOAD_RATE = 32_000, 5_000
DOWNLOAD_RATE = 60_000
PHONE_RATE = 20_000
FAST_PAUSE, FAST_REQUESTS = 0.15, 4
SLOW_PAUSE = 0.5


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
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self, wanted: int, bucket: Bucket = None) -> None:
        """Reads one answer; its body must be `wanted` bytes long (any length if negative)."""
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
        fast, slow = self._options.fast, self._options.slow
        kinds = [(self._fast, fast), (self._phone, slow), (self._upload, slow), (self._download, slow)]
        return [self._repeat(one, next(self._sources), number / count)
                for one, count in kinds for number in range(count)]

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            pass  # the usual case: nobody stops us

    async def _repeat(self, one, source: str, offset: float) -> None:
        await self._pause(offset)  # so that the clients are not in step
        while not self.stopping.is_set():
            await one(source)

    async def _attempt(self, kind: str, work, connection: int, opened) -> bool:
        """Runs one request and writes down what became of it."""
        start = time.monotonic()
        try:
            fate = await fate_of(work(), PATIENCE[kind])
        except Stale:
            return False
        self._write({"kind": kind, "t": start, "end": time.monotonic(), "fate": fate,
                     "connection": connection, "connected": opened()})
        return fate == "served"

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
                if not await self._attempt(kind, work, number, lambda: line.writer is not None):
                    break
                if index + 1 < len(requests):
                    await self._pause(pause)
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


async def run(options) -> None:
    def write(event: dict) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    if options.role == "control":
        await run_control(options, stopping)
    elif options.role == "probe":
        await run_probes(options, write, stopping)
    else:
        honest = Honest(options, write)
        honest.stopping = stopping
        await asyncio.gather(*honest.clients())


def main() -> int:
    parser = argparse.ArgumentParser(prog="load.py", description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=["honest", "probe", "control"])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--source", action="append", help="address to come from; several: taken in turn")
    parser.add_argument("--control-host")
    parser.add_argument("--control-port", type=int)
    parser.add_argument("--fast", type=int, help="how many fast clients")
    parser.add_argument("--slow", type=int, help="how many slow clients of each kind")
    parser.add_argument("--page", type=int, help="bytes of /page.txt")
    parser.add_argument("--file", type=int, help="bytes of /file.bin")
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

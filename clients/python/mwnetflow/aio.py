"""The same client for asyncio."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import ssl
from typing import Any, AsyncIterator, Callable, Optional

from . import _requests
from .wire import (Decoder, Feature, Flow, Observation, Request, Response, Rounds, Rule,
                   SampledRound)


class AsyncClient(_requests.Requests):
    """One connection to a NetFlow server; an asynchronous context manager.

    Every request is a coroutine, and several may wait at once. Observations are kept until they are
    asked for, at most `kept` of them; `missed` counts those that came beyond. So are rounds of samples,
    the last `kept_rounds`; `missed_rounds` counts those that made room.
    """

    def __init__(self, address: Optional[str] = None, *, session: Optional[str] = None,
                 token: Optional[str] = None, tls: Optional[ssl.SSLContext] = None,
                 kept: int = 65536, kept_rounds: int = 16) -> None:
        self._address = address or _requests.address_of_session(session)
        self._token = token
        self._tls = tls
        self.missed = 0
        self._kept = kept
        self._observations: asyncio.Queue[Optional[Observation]] = asyncio.Queue()
        self.missed_rounds = 0
        self._rounds: asyncio.Queue[Optional[SampledRound]] = asyncio.Queue()
        self._kept_rounds = kept_rounds
        self._flows: list[Flow] = []
        self._rules: list[Rule] = []
        self._listing = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._ids = itertools.count(1)
        self._failure: Optional[BaseException] = None

    async def __aenter__(self) -> "AsyncClient":
        if "/" in self._address:
            connection = await asyncio.to_thread(_requests.open_socket, self._address, None, None, None)
            connection.setblocking(False)
            self._reader, self._writer = await asyncio.open_unix_connection(sock=connection)
        else:
            host, _, port = self._address.rpartition(":")
            context = (self._tls or ssl.create_default_context()) if self._token is not None else None
            self._reader, self._writer = await asyncio.open_connection(host.strip("[]"), int(port),
                                                                       ssl=context)
            if self._token is not None:
                self._writer.write(self._token.encode() + b"\n")
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    def _take_observation(self, observation: Observation) -> None:
        if self._observations.qsize() < self._kept:
            self._observations.put_nowait(observation)
        else:
            self.missed += 1

    def _take_round(self, whole: SampledRound) -> None:
        if self._rounds.qsize() >= self._kept_rounds:
            self._rounds.get_nowait()
            self.missed_rounds += 1
        self._rounds.put_nowait(whole)

    async def _read(self) -> None:
        decoder = Decoder()
        sampling = Rounds()
        try:
            while data := await self._reader.read(1 << 16):
                for message in decoder.feed(data):
                    if isinstance(message, Observation):
                        self._take_observation(message)
                    elif isinstance(message, Flow):
                        self._flows.append(message)
                    elif isinstance(message, Rule):
                        self._rules.append(message)
                    elif isinstance(message, Response):
                        if (future := self._waiting.pop(message.id, None)) and not future.done():
                            future.set_result(message)
                    elif (whole := sampling.add(message)) is not None:
                        self._take_round(whole)
            raise ConnectionResetError("the NetFlow server closed the connection")
        except Exception as failure:  # handed to everybody who waits, here or later
            self._failure = failure
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(failure)
            self._observations.put_nowait(None)
            self._rounds.put_nowait(None)

    async def observations(self) -> AsyncIterator[Observation]:
        """Observations as they come; ends by raising what ended the connection."""
        while True:
            observation = await self._observations.get()
            if observation is None:
                assert self._failure is not None
                raise self._failure
            yield observation

    async def rounds(self) -> AsyncIterator[SampledRound]:
        """Rounds of samples as they come; ends by raising what ended the connection."""
        while True:
            whole = await self._rounds.get()
            if whole is None:
                assert self._failure is not None
                raise self._failure
            yield whole

    async def list(self) -> list[Flow]:
        """Every socket that is open now."""
        async with self._listing:
            self._flows = []
            await self.get(Feature.LIST)
            return self._flows

    # `list` names the method above from here on.
    async def rules(self) -> "builtins.list[Rule]":
        """The rules in force, and those that ended last."""
        async with self._listing:
            self._rules = []
            await self.get(Feature.RULES)
            return self._rules

    async def request(self, request: Request) -> Response:
        """Sends a request as it is and waits for its answer."""
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        self._writer.write(request.pack())
        await self._writer.drain()
        return await future

    def _next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF

    async def _send(self, request: Request, reading: Callable[[int, Response], Any]) -> Any:
        return reading(request.name, await self.request(request))

"""aio.py server PORT | client PORT - asyncio streams and datagrams."""

import asyncio
import sys

MESSAGE = bytes(range(256)) * 2048


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data, address) -> None:
        self.transport.sendto(data[::-1], address)


async def serve_client(reader, writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(port: int) -> None:
    server = await asyncio.start_server(serve_client, ["127.0.0.1", "::1"], port)
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, ("127.0.0.1", port))
    async with server:
        await server.serve_forever()


async def echo(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(MESSAGE)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    if answer != MESSAGE:
        print(f"{host}: {len(answer)} bytes of {len(MESSAGE)}, right so far: "
              f"{answer == MESSAGE[:len(answer)]}")
    return answer == MESSAGE


class Ask(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        transport.sendto(b"datagram")

    def datagram_received(self, data, _) -> None:
        self.answer.set_result(data)


async def ask(port: int) -> bool:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Ask, remote_addr=("127.0.0.1", port))
    answer = await asyncio.wait_for(protocol.answer, 10)
    transport.close()
    return answer == b"margatad"


async def main(port: int) -> int:
    jobs = [echo(host, port) for host in ("127.0.0.1", "::1") for _ in range(20)]
    results = await asyncio.gather(*jobs, ask(port))
    print(sum(results), "of", len(results))
    return 0 if all(results) else 1


if sys.argv[1] == "server":
    asyncio.run(serve(int(sys.argv[2])))
else:
    sys.exit(asyncio.run(main(int(sys.argv[2]))))

"""Connections of redis-py that are taken over: their ends, their replies, their attributes."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis

import bot_ratelimit
from bot_ratelimit.storage.redis import driver
from tests.servers import Server


async def test_a_connection_that_has_ended_is_not_taken_over_silently(own_server: Server) -> None:
    """Who connects just before the server ends is told of it, though redis-py heard it first."""
    async with aioredis.Redis(port=own_server.port) as client:
        connection: Any = client.connection_pool.make_connection()
        wire = await driver.open_wire(connection, connection.connect)
        own_server.kill()
        await asyncio.sleep(0.05)
        lost = asyncio.get_running_loop().create_future()
        wire.attach(lambda reply: None, lost.set_result)
        assert "closed by server" in str(await asyncio.wait_for(lost, 5))
        wire.close()


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_replies_may_arrive_in_pieces(size: int) -> None:
    """Replies are the same however the network cuts them; what nobody asked for is passed over."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"PING" not in (asked := await reader.read(1_000)):
            writer.write(b"-ERR unknown command\r\n" * asked.count(b"*"))
        said = b">2\r\n+news\r\n:1\r\n+PONG\r\n-MOVED 7 h:1\r\n*2\r\n:1\r\n$2\r\nab\r\n"
        for i in range(0, len(said), size):
            writer.write(said[i : i + size])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = aioredis.Redis(port=port, protocol=2)
        connection: Any = client.connection_pool.make_connection()
        wire = await driver.open_wire(connection, connection.connect)
        found: list[Any] = []
        lost = asyncio.get_running_loop().create_future()
        wire.attach(found.append, lost.set_result)
        wire.write(b"*1\r\n$4\r\nPING\r\n", 3)
        await asyncio.wait_for(lost, 5)
        assert [str(each) for each in found] == ["b'PONG'", "MOVED 7 h:1", "[1, b'ab']"]
        wire.close()
        await client.aclose()


def test_private_attributes_are_used_in_one_file() -> None:
    """No other module uses a private attribute of redis-py."""
    package = Path(bot_ratelimit.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "driver.py":
            continue
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if type(node) is ast.Attribute
        }
        assert not names & {*driver.PRIVATE, "nodes_manager", "sentinel_manager"}, path

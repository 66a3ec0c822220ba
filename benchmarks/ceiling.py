"""The ceiling: how much the server itself can do, with a client that costs next to nothing.

What a contestant sends is overheard with MONITOR, written down with other users in it, and sent
again from a plain socket, hundreds of commands at a time.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Final

from benchmarks import handmade, ours
from benchmarks.contestant import CROWD, Entry, Setting
from benchmarks.measure import Figures, MiscountError
from benchmarks.race import Run, race
from benchmarks.records import Absence, Record, Records
from benchmarks.server import Server
from benchmarks.tables import Table, number

NAME: Final = "ceiling"
CASE: Final = "the server alone"
TOGETHER: Final = 100
BEST: Final = f"{ours.NAME}, {TOGETHER} at a time"
OVERHEARD: Final[Mapping[str, tuple[Entry, int]]] = {
    BEST: (ours.OnRedis, TOGETHER),
    f"{ours.NAME}, one at a time": (ours.OnRedis, 1),
    "hand-written MULTI": (handmade.Multi, 1),
    "hand-written EVALSHA": (handmade.Script, 1),
    "bare INCR": (handmade.Incr, 1),
}

# Nine digits, so that a command keeps its length whoever is in it.
_SOMEBODY: Final = 777_000_000
_USER: Final = re.compile(rb"777\d{6}")
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_MARK: Final = "overheard"
_PONG: Final = b"+PONG\r\n"

Command = list[bytes]


def measure(run: Run) -> Iterator[Record | Absence]:
    payloads: dict[str, list[bytes]] = {}

    def replay(case: str, who: str) -> Figures:
        entry, together = OVERHEARD[who]
        if who not in payloads:
            commands = asyncio.run(_overheard(run.server, entry, together))
            payloads[who] = _payloads(commands, together)
        run.server.flush()
        before = run.server.cpu()
        sent, seconds = _pipelined(run.server.port, payloads[who], run.seconds)
        served = run.server.cpu() - before
        if run.server.keys() < CROWD // 10:
            raise MiscountError(f"the server counted only {run.server.keys()} users")
        return {"rate": sent / seconds, "server_us": served / sent * 1e6}

    return race(run, NAME, {CASE: list(OVERHEARD)}, replay)


async def _overheard(server: Server, entry: Entry, together: int) -> list[Command]:
    """The commands that so many decisions come to when they are asked for together."""
    contestant = entry()
    await contestant.setup(Setting(server.url, together))
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"MONITOR\r\n")
        await reader.readline()
        # The first time, connections and scripts have yet to arrive, and keys get their TTL.
        for _ in range(2):
            server.echo(_MARK)
            await asyncio.gather(*(contestant.hit(_SOMEBODY + i) for i in range(together)))
        server.echo(_MARK)
        marks, lines = 0, []
        while marks < 3:
            line = await reader.readline()
            marks += _MARK.encode() in line
            if marks == 2 and b" lua] " not in line:
                lines.append(line)
        writer.close()
    finally:
        await contestant.close()
    return [_QUOTED.findall(line) for line in lines[1:]]


def _payloads(commands: list[Command], decisions: int) -> list[bytes]:
    """Some 20,000 decisions about random users, 500 in a payload, a PING at the end of each."""
    template = b"".join(_encoded(command) for command in commands)
    dice = random.Random(1)

    def for_others() -> bytes:
        others = iter(dice.sample(range(CROWD), decisions))
        names: dict[bytes, bytes] = {}

        def other(match: re.Match[bytes]) -> bytes:
            if match[0] not in names:
                names[match[0]] = b"%d" % (_SOMEBODY + next(others))
            return names[match[0]]

        return _USER.sub(other, template)

    in_one = 500 // decisions
    return [b"".join(for_others() for _ in range(in_one)) + b"PING\r\n" for _ in range(40)]


def _encoded(command: Command) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in command)


def _pipelined(port: int, payloads: list[bytes], seconds: float) -> tuple[int, float]:
    """Keep two payloads under way; returns the decisions made, and in how many seconds."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(payloads[0])
        reply = b""
        while not reply.endswith(_PONG):
            reply += connection.recv(1 << 20)
        if reply.startswith(b"-") or b"\r\n-" in reply:
            raise ConnectionError(f"the server answers {reply[:200]!r}")
        begun, under_way, answered, rest = time.perf_counter(), 0, 0, b""
        for payload in cycle(payloads):
            connection.sendall(payload)
            under_way += 1
            while under_way == 2:
                rest += connection.recv(1 << 20)
                if _PONG in rest:
                    under_way -= rest.count(_PONG)
                    answered += rest.count(_PONG)
                    rest = rest[rest.rindex(_PONG) + len(_PONG) :]
            if time.perf_counter() - begun > seconds:
                break
        return answered * 500, time.perf_counter() - begun


def tables(records: Records) -> list[Table]:
    return [
        Table(
            "Decisions a second that the server makes when the client costs nothing",
            ("", "a second", "µs of the server's CPU for one"),
            [
                (who, *(number(records.spread(NAME, CASE, who, f)) for f in ("rate", "server_us")))
                for who in records.who(NAME)
            ],
        )
    ]

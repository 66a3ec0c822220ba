"""Webhooks: the same bots, in a process of their own, fed over HTTP as Telegram feeds them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import Final

from benchmarks.bots import rates, raw_update
from benchmarks.contestant import UnableError, allowance, visitors
from benchmarks.guards import GUARDS, ByHand, Nobody, OursOnRedis
from benchmarks.measure import WARM_UP, Drive, Figures, check, drive
from benchmarks.race import Run, race
from benchmarks.records import Absence, Record, Records
from benchmarks.tables import Table, number, ranged

NAME: Final = "webhooks"
CONCURRENCY: Final = (1, 100)


_FEWER: Final = (Nobody.name, OursOnRedis.name, ByHand.name)


def case(concurrency: int) -> str:
    return f"webhook, {concurrency} at a time"


class Line(asyncio.Protocol):
    """A connection that is kept open, with one request under way; little work for this process."""

    _transport: asyncio.Transport
    _answer: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def request(self, head: bytes, body: bytes = b"") -> bytes:
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(
            b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (head, len(body), body)
        )
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().split(b"content-length:")[1].split()[0]):
            return
        if head.startswith(b"HTTP/1.1 200"):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(ConnectionError(f"the bot answers {head[:60]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionError("the bot hung up"))

    def close(self) -> None:
        self._transport.close()


def measure(run: Run) -> Iterator[Record | Absence]:
    processes: dict[str, subprocess.Popen[str]] = {}
    people = count(1_000_000, 1_000_000)  # others in each measurement, for bots that remember
    with ExitStack() as stack:
        # Starting a bot takes longer than measuring it.
        guards = [who for who in GUARDS if not run.quick or who in _FEWER]
        for who in guards:
            command = [sys.executable, "-m", "benchmarks.webhook_bot", who, run.server.url]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            processes[who] = process
        ports = {who: _first_line(process) for who, process in processes.items()}

        def post(at: str, who: str) -> Figures:
            if not ports[who].isdigit():
                raise UnableError(ports[who] or "it did not start; see above")
            work = _posted(run, int(ports[who]), next(people), concurrencies[at])
            done, handled, cpu = asyncio.run(work)
            check(handled, allowance(done.calls) if GUARDS[who]().limits else done.calls)
            return done.figures() | {"cpu_us": cpu / done.calls * 1e6}

        concurrencies = {case(n): n for n in CONCURRENCY}
        fewer = replace(run, rounds=max(1, run.rounds * 2 // 3), seconds=run.seconds * 3)
        yield from race(fewer, NAME, dict.fromkeys(concurrencies, guards), post)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def _posted(run: Run, port: int, people: int, concurrency: int) -> tuple[Drive, int, float]:
    """The drive, how many updates were handled, and the seconds of CPU that the bot used."""
    loop = asyncio.get_running_loop()
    lines = deque[Line]()
    for _ in range(concurrency):
        lines.append((await loop.create_connection(Line, "127.0.0.1", port))[1])

    async def act(update: tuple[int, int]) -> None:
        number, user = update
        line = lines.popleft()
        body = json.dumps(raw_update(number, people + user)).encode()
        await line.request(b"POST /webhook", body)
        lines.append(line)

    async def stats() -> tuple[int, float]:
        found = json.loads(await lines[0].request(b"GET /stats"))
        return found["handled"], found["cpu"]

    # Strangers, so that they neither count nor repeat themselves later.
    strangers = ((number, 500_000 + user) for number, user in enumerate(visitors(), people))
    await drive(act, strangers, concurrency, WARM_UP)
    run.server.flush()
    await lines[0].request(b"GET /collect")
    handled, cpu = await stats()
    updates = enumerate(visitors(), people + 500_000)
    done = await drive(act, updates, concurrency, run.seconds)
    handled_by_now, cpu_by_now = await stats()
    for line in lines:
        line.close()
    return done, handled_by_now - handled, cpu_by_now - cpu


def tables(records: Records) -> list[Table]:
    return [rates(records, NAME, *map(case, CONCURRENCY)), _cpu(records)]


def _cpu(records: Records) -> Table:
    at = case(max(CONCURRENCY))
    return Table(
        f"Microseconds of CPU of the bot's process for an update, {max(CONCURRENCY)} at a time",
        ("", "median", "in multiples of the bare bot's"),
        [
            (
                who,
                number(records.spread(NAME, at, who, "cpu_us")),
                ranged(records.ratio(NAME, at, who, Nobody.name, "cpu_us")),
            )
            for who in records.who(NAME, at)
        ],
    )

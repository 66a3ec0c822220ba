"""Webhooks: the same bots in separate processes, which get updates over HTTP like from Telegram."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from contextlib import ExitStack
from itertools import count
from multiprocessing.connection import Connection as Pipe
from typing import Final

from aiogram import Bot
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import ClientSession, TCPConnector, web

from benchmarks.bots import (
    ADDED,
    AT_A_TIME,
    GUARDS,
    TOKEN,
    UNLIMITED,
    Receiver,
    columns,
    raw_update,
)
from benchmarks.candidate import Setting, UnableError, allowance, visitors
from benchmarks.comparison import Benchmark, Measurements, Run, compare, reason
from benchmarks.measure import WARM_UP, Drive, Figures, check, drive
from benchmarks.records import Records
from benchmarks.server import worker
from benchmarks.tables import Table, grid


def case(at_a_time: int) -> str:
    return f"webhook, {at_a_time} at a time"


# -------------------------------------------------------------------------------------------------
# In the bot's process


def _serve(pipe: Pipe, who: str, url: str) -> None:
    logging.disable()
    try:
        asyncio.run(_listen(pipe, who, url))
    except Exception as error:
        pipe.send(reason(error))


async def _listen(pipe: Pipe, who: str, url: str) -> None:
    receiver = Receiver(who, Setting(url, 100))

    async def stats(request: web.Request) -> web.Response:
        gc.collect()
        return web.json_response({"handled": receiver.handled, "cpu": time.process_time()})

    app = web.Application()
    # In the foreground, so that an answer means that the update was handled or refused.
    handler = SimpleRequestHandler(receiver.dispatcher, Bot(TOKEN), handle_in_background=False)
    handler.register(app, "/webhook")
    app.router.add_get("/stats", stats)
    async with receiver.guarded:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        # As in the other benchmarks: a collection of all of aiogram takes 0.1 s and more, which
        # would affect one measurement and not the next.
        gc.collect()
        gc.freeze()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()  # until this process is killed


# -------------------------------------------------------------------------------------------------
# In the process that posts


def _measure(run: Run) -> Measurements:
    people = count(1_000_000, 1_000_000)  # new users in each measurement
    with ExitStack() as stack:
        # Starting a bot takes longer than measuring it.
        pipes = {
            who: stack.enter_context(worker(_serve, who, run.server.url))
            for who in (GUARDS if not run.quick else [*GUARDS][::3])
        }
        ports = {who: pipe.recv() for who, pipe in pipes.items()}

        def post(at: str, who: str) -> Figures:
            if isinstance(ports[who], str):
                raise UnableError(ports[who])
            done, handled, cpu = asyncio.run(_post(run, ports[who], next(people), cases[at]))
            check(handled, done.calls if who in UNLIMITED else allowance(done.calls))
            return done.figures() | {"cpu_us": cpu / done.calls * 1e6}

        cases = {case(n): n for n in AT_A_TIME}
        yield from compare(run.fewer(0.6, 3), "webhooks", {at: [*ports] for at in cases}, post)


async def _post(run: Run, port: int, people: int, at_a_time: int) -> tuple[Drive, int, float]:
    """Return the drive, the number of handled updates, and the CPU seconds of the bot."""
    connector = TCPConnector(limit=0)
    async with ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:

        async def act(update: tuple[int, int]) -> None:
            number, user = update
            body = raw_update(number, people + user)
            async with session.post("/webhook", json=body, raise_for_status=True) as answer:
                await answer.read()

        async def stats() -> tuple[int, float]:
            async with session.get("/stats") as answer:
                found = await answer.json()
            return found["handled"], found["cpu"]

        # Different users, so that they do not affect the counts later.
        others = ((number, 500_000 + user) for number, user in enumerate(visitors(), people))
        await drive(act, others, at_a_time, WARM_UP)
        run.server.flush()
        await stats()
        handled, cpu = await stats()
        done = await drive(act, enumerate(visitors(), people + 500_000), at_a_time, run.seconds)
        handled_by_now, cpu_by_now = await stats()
    return done, handled_by_now - handled, cpu_by_now - cpu


def _tables(records: Records) -> list[Table]:
    return [grid(records, "webhooks", "Updates over HTTP", columns(case), ADDED)]


WEBHOOKS: Final = Benchmark("webhooks", _measure, _tables)

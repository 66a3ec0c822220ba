"""`python -m benchmarks.outgoing`: the cost of OutgoingLimits, and its throughput."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis.asyncio as aioredis
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.methods import SendMessage
from rich.console import Console
from rich.table import Table

from benchmarks.server import redis_server
from bot_ratelimit import Limiter, MemoryStorage, OutgoingLimits, RedisStorage
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.floods import FloodControl
from tests.outgoing.virtual import Telegram, VirtualLoop, now

CALLS: Final = 5_000
CHATS: Final = 200
GROUPS: Final = 50
SECONDS: Final = 40.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outgoing", description=__doc__)
    parser.add_argument("what", nargs="*", default=[*RUNS, "broadcast"])
    parser.add_argument("--chats", type=int, default=100_000, help="of the broadcast")
    options = parser.parse_args()
    if options.what[:1] == ["worker"]:
        return asyncio.run(worker(*options.what[1:]))
    logging.disable()
    console = Console(width=120)
    for what in options.what:
        if what == "broadcast":
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                console.print(runner.run(broadcast(options.chats)))
        else:
            with redis_server() as server:
                console.print(asyncio.run(RUNS[what](server)))
    return 0


# The cost of a call that need not wait: a session that answers at once, a new chat each time.


class Instant(Telegram):
    async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
        await asyncio.sleep(0)
        return True


class AioLimiterLogic:
    """What python-telegram-bot's AIORateLimiter does, as a middleware."""

    def __init__(self) -> None:
        from aiolimiter import AsyncLimiter

        self._make = AsyncLimiter
        self._all = AsyncLimiter(10_000_000, 1)  # its default of 30/s would hide everything else
        self._groups: dict[Any, Any] = {}

    async def __call__(self, make_request: Any, bot: Bot, method: Any) -> Any:
        chat = getattr(method, "chat_id", None)
        if isinstance(chat, int) and chat < 0:
            group = self._groups.setdefault(chat, self._make(20, 60))
            async with group:
                pass
        async with self._all:
            return await make_request(bot, method)


async def overhead(server: Any) -> Table:
    table = Table(
        "", "one by one, µs", "100 at a time, µs", "commands", title="A call that need not wait"
    )
    client = aioredis.Redis.from_url(server.url)
    entries: dict[str, Callable[[Bot], object]] = {
        "bare bot": lambda bot: None,
        "aiolimiter, as in python-telegram-bot": lambda bot: bot.session.middleware(
            AioLimiterLogic()
        ),  # type: ignore[arg-type, func-returns-value] # a middleware without its generics
        "OutgoingLimits, memory": lambda bot: OutgoingLimits(
            limiter=Limiter(MemoryStorage(100_000))
        ).setup(bot),
        "OutgoingLimits, Redis": lambda bot: OutgoingLimits(
            limiter=Limiter(RedisStorage(client), timeout=5)
        ).setup(bot),
    }
    for name, setup in entries.items():
        bot = Bot(TOKEN, Instant())
        try:
            setup(bot)
        except ImportError:
            table.add_row(name, "not installed")
            continue
        cells = []
        for offset, together in ((0, 1), (CALLS * 10, 100)):
            methods = [SendMessage(chat_id=offset + i + 1, text="x") for i in range(CALLS)]
            await each(bot, methods[:100], together)
            before = await scripts(client)
            took = min([await each(bot, methods[100:], together)])
            commands = await scripts(client) - before
            cells.append((took / (CALLS - 100) * 1e6, commands / (CALLS - 100)))
        table.add_row(
            name, *(f"{us:.0f}" for us, _ in cells), " / ".join(f"{c:.2f}" for _, c in cells)
        )
    await client.aclose()
    return table


async def each(bot: Bot, methods: list[Any], together: int) -> float:
    shared = iter(methods)

    async def work() -> None:
        for method in shared:
            await bot(method)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(together)))
    return time.perf_counter() - began


async def scripts(client: aioredis.Redis) -> int:
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


# Backlogs: processes with a real Redis, against the limits of the stand-in, over HTTP.


async def backlog(server: Any) -> Table:
    table = Table(
        *HEAD, title=f"{CHATS} chats, {GROUPS} of them groups, a backlog for {SECONDS:.0f} s"
    )
    for count in (1, 3):
        server.flush()
        table.add_row(
            f"{count} processes", *await scene(server, count, "1/s burst 5", "20/minute sliding")
        )
    return table


async def wrong(server: Any) -> Table:
    table = Table(*HEAD, title="The same with budgets twice too high")
    server.flush()
    table.add_row("3 processes", *await scene(server, 3, "2/s burst 10", "40/minute sliding"))
    return table


HEAD: Final = (
    "",
    "delivered",
    "of the ideal",
    "429s",
    "too early",
    "twice",
    "out of order",
    "commands a message",
    "reply elsewhere p50/max, ms",
)


async def scene(server: Any, count: int, per_chat: str, per_group: str) -> list[str]:
    floods = FloodControl(bulk=1_000_000)  # all of them are replies
    async with BotApi(floods=floods) as api, aioredis.Redis.from_url(server.url) as client:
        before = await scripts(client)
        begin = time.time() + 12
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.outgoing", "worker", api.url, server.url),
                *(str(number), str(begin), per_chat, per_group, str(count)),
                stdout=asyncio.subprocess.PIPE,
            )
            for number in range(count)
        ]
        outputs = [(await process.communicate())[0] for process in processes]
        commands = await scripts(client) - before
    delays = sorted(float(value) for output in outputs for value in output.split())
    chats = set(chats_of())
    seen: dict[tuple[int | None, str], list[int]] = defaultdict(list)
    taken = 0
    first = min(call.at for call in api.calls if call.chat_id in chats)
    for call in api.calls:
        if call.chat_id in chats and call.at <= first + SECONDS:
            taken += 1
        if call.chat_id in chats:
            who, number = call.text.split()
            seen[call.chat_id, who].append(int(number))
    ideal = sum(5 + int(SECONDS) if chat > 0 else 20 for chat in chats)
    twice = sum(n - 1 for found in seen.values() for n in Counter(found).values())
    disorder = sum(found != sorted(found) for found in seen.values())
    return [
        str(taken),
        f"{taken / ideal:.1%}",
        str(floods.refused),
        str(floods.impatient),
        str(twice),
        str(disorder),
        f"{commands / max(1, taken):.2f}",
        f"{delays[len(delays) // 2]:.0f} / {delays[-1]:.0f}",
    ]


def chats_of() -> list[int]:
    return [*range(1, CHATS - GROUPS + 1), *range(-GROUPS, 0)]


async def worker(
    url: str, redis_url: str, number: str, begin: str, per_chat: str, per_group: str, count: str
) -> int:
    logging.basicConfig(level=logging.WARNING)
    async with (
        Bot(TOKEN, AiohttpSession(api=TelegramAPIServer.from_base(url))) as bot,
        aioredis.Redis.from_url(redis_url) as client,
    ):
        outgoing = OutgoingLimits(
            client, per_chat=per_chat, per_group=per_group, max_wait=300, retries=20
        )
        outgoing.setup(bot)
        need = int((SECONDS + 10) / int(count)) + 5
        await bot.send_message(-1_000_000 - int(number), "warm")  # a bot that is already running
        await asyncio.sleep(float(begin) - time.time())
        tasks = []
        for i in range(need):
            for chat in chats_of():
                tasks.append(asyncio.create_task(bot.send_message(chat, f"{number} {i}")))
                if len(tasks) % 10 == 0:
                    await asyncio.sleep(0)  # a bot does not get ten thousand requests in one turn
        await asyncio.sleep(10)
        until = time.time() + SECONDS - 10
        chat = 1_000_000 * (int(number) + 1)
        while time.time() < until:
            chat += 1
            began = time.perf_counter()
            await bot.send_message(chat, "reply")
            print((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.2)
        await outgoing.close()
        await asyncio.gather(*tasks, return_exceptions=True)
    return 0


# Floors: everything at once, against a Telegram that counts where requests arrive.


async def floors(server: Any) -> Table:
    table = Table(
        *("", "429s of 720", "too early", "seconds", "of the ideal", "lost"),
        title="3 processes, 40 chats, 18 messages each, all at once; the ideal is 13 s",
    )
    for name, limits in (
        ("exact budgets", {}),
        ("budgets twice too high", {"per_chat": "2/s burst 10"}),
    ):
        server.flush()
        floods = FloodControl(bulk=1_000_000)
        async with BotApi(floods) as api:
            options = {"chats": 40, "each": 18, "limits": limits}
            urls, wanted = (api.url, server.url), json.dumps(options)
            processes = [
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.outgoing.programs", "backlog", *urls),
                    *(json.dumps([number, 3]), wanted),
                    stdout=asyncio.subprocess.PIPE,
                )
                for number in range(3)
            ]
            lost = [json.loads((await each.communicate())[0]) for each in processes]
        times = [call.at for call in api.calls + api.refused]
        took = max(times) - min(times)
        table.add_row(
            *(name, str(len(api.refused)), str(floods.impatient)),
            *(f"{took:.1f}", f"{took / 13:.2f}", str(sum(lost))),
        )
    return table


# A broadcast, in virtual time.


async def broadcast(chats: int) -> Table:
    class Forgetful(Telegram):
        async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
            await asyncio.sleep(0.2)
            return True

    bot = Bot(TOKEN, Forgetful())
    outgoing = OutgoingLimits(limiter=Limiter(MemoryStorage(clock=now), clock=now), margin=0).setup(
        bot
    )
    table = Table(
        "chats",
        "seconds",
        "ideal",
        "peak memory, MB",
        title="A broadcast at 25/s, answers after 0.2 s",
    )

    async def send(chat: int) -> None:
        await bot.send_message(chat, "x")

    began, total = now(), 0
    async for _ in outgoing.broadcast(range(1, chats + 1), send):
        total += 1
        if total in (1_000, chats // 10, chats):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            table.add_row(
                f"{total:,}", f"{now() - began:,.0f}", f"{total / 25:,.0f}", f"{peak:.1f}"
            )
    return table


RUNS: Final[dict[str, Callable[[Any], Awaitable[Table]]]] = {
    "overhead": overhead,
    "backlog": backlog,
    "wrong": wrong,
    "floors": floors,
}

if __name__ == "__main__":
    sys.exit(main())

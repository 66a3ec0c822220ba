"""What the pages show of logs and terminals is what is really there to see."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.exceptions import TelegramConflictError, TelegramRetryAfter
from aiogram.methods import GetMe, GetUpdates, SendMessage
from aiogram.types import User

from bot_ratelimit import (
    ConfigError,
    InFlight,
    Limiter,
    OutgoingLimits,
    Penalty,
    RateLimitMiddleware,
    RedisStorage,
    Rule,
    Settings,
    Subject,
)
from example_bot.demo.updates import message
from tests.benches import eventually
from tests.incoming.support import RecordingSession
from tests.servers import PATIENCE, Server, free_port

from .pages import DOCS, Block, blocks
from .stage import TOKEN

USER = Subject(user=42, chat=42)


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, and spaces at its end."""
    return re.sub(r"\d+(\.\d+)?", "N", line).rstrip()


def pattern(line: str) -> re.Pattern[str]:
    """What a line of the page stands for: an ellipsis is anything."""
    return re.compile(re.escape(shape(line)).replace("…", ".+"))


@asynccontextmanager
async def limited(client: aioredis.Redis) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """A middleware as that of the pages, and a way to ask it about an update of user 42."""
    middleware = RateLimitMiddleware("5/10s", client, "my_bot")
    yield partial(middleware.limiter.hit, middleware.rules, USER)
    await middleware.close()


async def three_instances(server: Server) -> None:
    RateLimitMiddleware("5/10s")
    async with limited(aioredis.Redis(port=server.port)):
        pass


async def a_mistake(_: Server) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(rate_limit="5 minutes")
    logging.error("bot_ratelimit.errors.ConfigError: %s", caught.value)


async def a_hung_handler(_: Server) -> None:
    dispatcher = Dispatcher()
    InFlight(patience=0.01).setup(dispatcher)

    async def work(_: object) -> None:
        await asyncio.sleep(5)

    dispatcher.message.register(work)
    update = asyncio.create_task(dispatcher.feed_raw_update(Bot(TOKEN), message(42, "hi")))
    await asyncio.sleep(0.05)
    await dispatcher.emit_shutdown()
    update.cancel()


async def a_server_that_hangs(server: Server) -> None:
    async with limited(aioredis.Redis(port=server.port)) as hit:
        await hit()
        server.hang()
        for _ in range(4):
            await hit()
        server.resume()

        async def answers_again() -> bool:
            await asyncio.sleep(0.04)
            await hit()
            return "answers again" in "".join(_log.messages)

        await eventually(answers_again, within=10)


async def telegram_refuses(_: Server) -> None:
    bot = Bot(TOKEN, session=RecordingSession())
    asked = SendMessage(chat_id=7, text="hi")
    bot.session.error = TelegramRetryAfter(asked, "Too Many Requests: retry after 30", 30)
    outgoing = OutgoingLimits(None, "my_bot").setup(bot)
    with pytest.raises(TelegramRetryAfter) as caught:
        await bot(asked)
    logging.error("TelegramRetryAfter: %s", caught.value)
    await outgoing.close()


async def polling_fails(_: Server) -> None:
    other = (
        "terminated by other getUpdates request; make sure that only one bot instance is running"
    )
    webhook = (
        "can't use getUpdates method while webhook is active; "
        "use deleteWebhook to delete the webhook first"
    )
    answers: list[Any] = [
        TelegramRetryAfter(GetUpdates(), "Too Many Requests: retry after 5", 5),
        *(TelegramConflictError(GetUpdates(), f"Conflict: {why}") for why in (other, webhook)),
    ]
    dispatcher = Dispatcher()

    async def refuse(self: object, bot: Bot, method: Any, timeout: object = None) -> object:
        if isinstance(method, GetMe):
            return User(id=42, is_bot=True, first_name="Bot", username="bot")
        if answers:
            raise answers.pop(0)
        await dispatcher.stop_polling()
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AiohttpSession, "make_request", refuse)
        patch.setattr("aiogram.utils.backoff.Backoff.asleep", lambda self: asyncio.sleep(0))
        async with asyncio.timeout(10):
            await dispatcher.start_polling(Bot(TOKEN), handle_signals=False)


SCENES: dict[tuple[str, str], Callable[[Server], Awaitable[None]]] = {
    ("start.md", "The first bot"): three_instances,
    ("start.md", "Redis"): three_instances,
    ("start.md", "Settings"): a_mistake,
    ("start.md", "Stopping"): a_hung_handler,
    ("troubleshooting.md", "Redis rate limit check failed"): a_server_that_hangs,
    ("troubleshooting.md", "429 Too Many Requests"): telegram_refuses,
    ("troubleshooting.md", "Polling fails"): polling_fails,
    ("troubleshooting.md", "Three instances let three times as much through"): three_instances,
}

_log: pytest.LogCaptureFixture
LOGS = [block for block in blocks("text") if (block.page, block.heading) in SCENES]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("block", LOGS, ids=str)
async def test_the_log_says_that(
    block: Block, own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Each line of a log in the pages is written when that happens, word for word."""
    global _log
    _log = caplog
    caplog.set_level(logging.INFO)
    await SCENES[block.page, block.heading](own_server)
    seen = set()
    for record in caplog.records:
        first, *_ = record.getMessage().split("\n")
        seen |= {shape(f"{record.levelname}:{record.name}:{first}"), shape(first)}
    for line in block.text.splitlines():
        assert any(map(pattern(line).fullmatch, seen)), f"{line}\n" + "\n".join(sorted(seen))


async def messages(client: aioredis.Redis, count: int) -> None:
    async with limited(client) as hit:
        for _ in range(count):
            await hit()


async def a_ban(client: aioredis.Redis) -> None:
    penalty = Penalty(after="10/minute", ban="15m")
    limiter = Limiter(RedisStorage(client), key_prefix="my_bot", timeout=5)
    for _ in range(20):
        await limiter.hit([Rule("1/s"), penalty], USER)
    await client.delete("my_bot:ratelimit:42")
    await limiter.close()


STATES: dict[str, Callable[[aioredis.Redis], Awaitable[None]]] = {
    "Redis": partial(messages, count=2),
    "Troubleshooting": partial(messages, count=7),
    "One user is stuck": a_ban,
}


@pytest.mark.parametrize("block", blocks("console"), ids=str)
async def test_the_terminal_shows_that(
    block: Block, client: aioredis.Redis, redis_server: Server, environment: pytest.MonkeyPatch
) -> None:
    """Each command of the pages prints what stands below it, but for its numbers."""
    if shutil.which("redis-cli") is None:
        pytest.skip("not run: there is no redis-cli here")
    if block.heading in STATES:
        await STATES[block.heading](client)
    environment.setenv("REDIS_URL", redis_server.url)
    environment.setenv("REDIS_KEY_PREFIX", "my_bot")
    for part in re.split(r"(?m)^\$ ", block.text)[1:]:
        command, _, shown = part.partition("\n")
        program, *words = shlex.split(command)
        if program == "bot-ratelimit":
            words = [sys.executable, "-m", "bot_ratelimit", *words]
        else:
            tty = [] if "--scan" in words else ["--no-raw"]
            words = [program, "-p", str(redis_server.port), *tty, *words]
        run = partial(subprocess.run, capture_output=True, text=True, timeout=PATIENCE)
        ran = await asyncio.to_thread(run, words)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        if shown:
            assert [*map(shape, ran.stdout.splitlines())] == [*map(shape, shown.splitlines())]


async def test_the_reasons_in_the_table(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Reasons for a failure that a server can cause are worded in the log as in the table."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("| the line says | fix |")[2].partition("\n\n")[0]
    port = own_server.port
    async with aioredis.Redis(port=port, db=4) as client:
        await client.rpush("my_bot:ratelimit:42", "not ours")
        await client.execute_command("ACL SETUSER limits on >pw ~other:* +@all")
    causes: dict[str, dict[str, Any]] = {
        "Connection refused": {"port": free_port()},
        "NOPERM": {"username": "limits", "password": "pw"},
        "invalid username-password pair": {"username": "limits", "password": "wrong"},
        "not connected to": {"ssl": True},
        "WRONGTYPE": {},
    }
    for number, (reason, options) in enumerate(causes.items()):
        # In a database each: the log says once in a process what it suffers from.
        client = aioredis.Redis(**{"port": port, "db": number, **options})
        async with limited(client) as hit:
            while reason not in caplog.text:
                await hit()
                await asyncio.sleep(0.01)
        assert f"`{reason}`" in table

"""A bot with the operators' page on loopback, for the tests of that page."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import redis.asyncio as aioredis
from aiohttp import web

from bot_ratelimit import Penalty, RateLimitMiddleware, Rule, Scope
from bot_ratelimit.admin import admin_app
from bot_ratelimit.admin.control import Control
from tests.incoming.support import Instance, chat, user

TOKEN = "a-token-of-the-tests-0123456789"
BOT_TOKEN = "1:TEST"
ADMIN, OTHER_ADMIN = 42, 43


@dataclass
class Site:
    """The bot, an operator beside the page, and where the page is."""

    instance: Instance
    middleware: RateLimitMiddleware
    control: Control
    url: str

    async def send(self, times: int, id_: int = 7) -> int:
        """How many of so many messages of a user are handled."""
        sender = {"from": user(id_), "chat": chat(id_)}
        return sum(await self.instance.send(*["hi"] * times, **sender))

    async def obey(self) -> None:
        """Let the bot look at the live limits now, and not only in two seconds."""
        assert self.middleware.live is not None
        await self.middleware.live.refresh()


RULES = (Rule("3/hour", name="messages"), Rule("100/hour", Scope.CHAT))


@asynccontextmanager
async def site(
    port: int, rules: Sequence[Rule] = RULES, *, statistics: bool = True
) -> AsyncIterator[Site]:
    """A bot that counts in this Redis, with its page below `/admin/`."""
    client = aioredis.Redis(port=port)
    middleware = RateLimitMiddleware(
        rules, client, penalty=Penalty("20/hour", "1h"), live=True, statistics=statistics,
        timeout=2, on_limited=None,
    )  # fmt: skip
    instance = Instance(middleware, ())
    middleware.setup(instance.dispatcher)
    instance.dispatcher.message.register(instance._handle)
    await instance.dispatcher.emit_startup()
    app = web.Application()
    app.add_subapp(
        "/admin/",
        admin_app(middleware, token=TOKEN, admins=[ADMIN, OTHER_ADMIN], bot_token=BOT_TOKEN),
    )
    runner = web.AppRunner(app)
    await runner.setup()
    address = web.TCPSite(runner, "127.0.0.1", 0)
    await address.start()
    control = Control.of(middleware, "anna@shell", patience=0)
    try:
        yield Site(instance, middleware, control, f"{_origin(runner)}/admin/")
    finally:
        await runner.cleanup()
        await instance.dispatcher.emit_shutdown()
        await client.aclose()


def init_data(user: int) -> str:
    """What Telegram tells a Mini App, signed with the bot's token."""
    fields = {
        "auth_date": str(int(time.time())),
        "user": json.dumps({"id": user, "first_name": "Anna"}),
    }
    text = "\n".join(f"{name}={fields[name]}" for name in sorted(fields))
    key = hmac.digest(b"WebAppData", BOT_TOKEN.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return urlencode({**fields, "hash": signature})


def _origin(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"

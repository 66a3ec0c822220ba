"""A real server with an admin_app on loopback, and clients of it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from aiogram import Bot
from aiohttp import ClientResponse, ClientSession, CookieJar, web
from aiohttp.test_utils import TestServer

from bot_ratelimit import Limiter, OutgoingLimits, RateLimitMiddleware, Rule, Scope
from bot_ratelimit.admin import admin_app
from bot_ratelimit.admin.control import Control
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.storage.base import Storage
from tests.benches import eventually
from tests.incoming.support import Instance, chat, user
from tests.outgoing.virtual import Telegram, too_many

TOKEN = "correct-horse-battery-staple"
BOT_TOKEN = "42:TELEGRAM-KNOWS-THIS-ONE"
ANNA, BORIS = 4242, 4343
"""Admins; everybody else is none."""

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAGE = {"Accept": "text/html"}


class Now:
    """A clock of Unix time that moves when told to."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Reply(NamedTuple):
    """A response that was read."""

    status: int
    content: Any
    text: str
    headers: Any
    cookies: list[str]

    @classmethod
    async def of(cls, response: ClientResponse) -> Reply:
        text = await response.text()
        is_json = response.content_type.endswith("json")
        cookies = response.headers.getall("Set-Cookie", [])
        content = json.loads(text) if is_json and text else None
        return cls(response.status, content, text, response.headers, cookies)

    @property
    def words(self) -> str:
        """The text of a page, as people read it."""
        return " ".join(unescape(re.sub(r"<[^>]*>", "", self.text)).split())


class Visitor:
    """A client with cookies, as a browser has them."""

    def __init__(self, server: TestServer, root: str, **headers: str) -> None:
        self.root = root
        self._server = server
        self.session = ClientSession(cookie_jar=CookieJar(unsafe=True), headers=headers)
        self.csrf = ""

    async def ask(self, method: str, path: str, **options: Any) -> Reply:
        """Send a request, and read the answer; no redirect is followed."""
        url = self._server.make_url(f"{self.root}{path}")
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return await Reply.of(response)

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.ask("GET", path, **options)

    async def change(self, method: str, path: str, sent: Any = None, **headers: str) -> Reply:
        """Change something as the page's script does."""
        if self.csrf:
            headers.setdefault("X-CSRF-Token", self.csrf)
        return await self.ask(method, path, json={} if sent is None else sent, headers=headers)

    async def raw(self, method: str, path: str, body: Any, **headers: str) -> Reply:
        """Send a body as it is, as JSON unless the headers say otherwise."""
        headers = {"Content-Type": "application/json", **headers}
        return await self.ask(method, path, data=body, headers=headers)

    async def log_in(self, **fields: str) -> Reply:
        """Log in with the token, or as told, and remember the CSRF token."""
        reply = await self.ask("POST", "login", data=fields or {"token": TOKEN})
        if reply.status == 200:
            self.csrf = reply.content["csrf"]
        return reply

    def cookies(self) -> dict[str, str]:
        return {cookie.key: cookie.value for cookie in self.session.cookie_jar}

    def steal(self, other: Visitor) -> None:
        """Take the cookies of another visitor."""
        for name, value in other.cookies().items():
            self.set_cookie(name, value)

    def set_cookie(self, name: str, value: str) -> None:
        self.session.cookie_jar.update_cookies({name: value}, self._server.make_url(self.root))


@dataclass
class Site:
    """A bot's web server with an admin_app in it."""

    server: TestServer
    middleware: RateLimitMiddleware
    now: Now
    root: str
    instance: Any = None
    """An `Instance`: the bot, if it runs."""

    @property
    def url(self) -> str:
        return str(self.server.make_url(self.root))

    @property
    def control(self) -> Control:
        """An operator beside the page."""
        return Control.of(self.middleware, "anna@shell", patience=0)

    async def send(self, times: int, id_: int = 42) -> int:
        """How many of so many messages of a user are handled."""
        sender = {"from": user(id_), "chat": chat(id_)}
        return sum(await self.instance.send(*["hi"] * times, **sender))

    async def obey(self) -> None:
        """Let the bot look at the live limits now, and not only in two seconds."""
        assert self.middleware.live is not None
        await self.middleware.live.refresh()

    @asynccontextmanager
    async def visitor(self, **headers: str) -> AsyncIterator[Visitor]:
        visitor = Visitor(self.server, self.root, **headers)
        async with visitor.session:
            yield visitor

    @asynccontextmanager
    async def script(self) -> AsyncIterator[Visitor]:
        """A program that shows the token with every request."""
        async with self.visitor(**BEARER) as visitor:
            yield visitor


def bot_on(
    storage: Storage,
    *,
    rules: Any = None,
    key_prefix: str = "bot",
    statistics: bool = True,
    **options: Any,
) -> RateLimitMiddleware:
    """The middleware of a bot with a few rules."""
    limiter = Limiter(storage, key_prefix=key_prefix, timeout=2, statistics=statistics)
    if rules is None:
        rules = [Rule("3/h", name="messages"), Rule("100/h", Scope.CHAT), Rule("20/h", name="x")]
    return RateLimitMiddleware(rules, limiter=limiter, live=True, **options)


@asynccontextmanager
async def site(
    middleware: RateLimitMiddleware, root: str = "/ops/admin/", **options: Any
) -> AsyncIterator[Site]:
    """A server on loopback, with the application below a path."""
    now = Now()
    options.setdefault("token", TOKEN)
    if options.setdefault("admins", [ANNA, BORIS]):
        options.setdefault("bot_token", BOT_TOKEN)
    admin = admin_app(middleware, clock=now, **options)
    app = admin
    if root != "/":
        app = web.Application()
        app.add_subapp(root, admin)
    async with TestServer(app) as server:
        yield Site(server, middleware, now, root)


@asynccontextmanager
async def running_bot(storage: Storage, version: int = 0, **options: Any) -> AsyncIterator[Site]:
    """A bot that runs, and its page. Its live limits have this version already, 0 or 1."""
    middleware = bot_on(storage, on_limited=None, **options)
    instance = Instance(middleware, ())
    middleware.setup(instance.dispatcher)
    instance.dispatcher.message.register(instance._handle)
    if version:
        await Control.of(middleware, "anna@shell", patience=0).changes.resume()
    await instance.dispatcher.emit_startup()
    async with site(middleware) as found:
        found.instance = instance
        yield found
    await instance.dispatcher.emit_shutdown()


@asynccontextmanager
async def sending(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A bot that broadcasts to 1,000 chats, and may not write to chat 7 after a 429."""
    monkeypatch.setattr("bot_ratelimit.outgoing.report.EVERY", 0.02)
    telegram = Telegram(latency=0.001)
    bot = Bot("42:TEST", telegram)
    limiter = Limiter(storage, timeout=5)
    outgoing = OutgoingLimits(limiter=limiter, statistics=True, max_wait=60, broadcast="50/s")
    outgoing.setup(bot)
    telegram.errors = [too_many(30)]
    blocked = asyncio.create_task(bot.send_message(7, "blocked"))

    async def broadcast() -> None:
        chats, progress = range(1_000, 2_000), Progress(1_000)
        async for _ in outgoing.broadcast(
            chats, lambda chat: bot.send_message(chat, "news"), progress=progress
        ):
            pass

    reader = Control(Limiter(storage, timeout=5, statistics=True), "anna")

    async def is_reported() -> bool:
        return any(each.done > 5 for each in (await reader.sending()).broadcasts)

    broadcasting = asyncio.create_task(broadcast())
    await eventually(is_reported, within=30)
    assert outgoing._report is not None
    await outgoing._report.statistics.flush()
    yield
    await outgoing.close()
    await asyncio.gather(blocked, broadcasting, return_exceptions=True)


def init_data(
    user: int | None = ANNA, *, token: str = BOT_TOKEN, at: float | None = None, **more: str
) -> str:
    """What Telegram gives a Mini App, signed as Telegram signs it."""
    now = time.time() if at is None else at
    fields = {"auth_date": str(int(now)), "query_id": secrets.token_urlsafe(), **more}
    if user is not None:
        fields["user"] = json.dumps({"id": user, "first_name": "Anna"}, separators=(",", ":"))
    checked = "\n".join(f"{name}={value}" for name, value in sorted(fields.items()))
    key = hmac.digest(b"WebAppData", token.encode(), "sha256")
    fields["hash"] = hmac.new(key, checked.encode(), hashlib.sha256).hexdigest()
    return urlencode(fields)

"""Runs a program of the pages as it is written: a real Redis, and a stand-in for Telegram."""

from __future__ import annotations

import ast
import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.exceptions import TelegramAPIError
from aiogram.methods import TelegramMethod
from aiogram.types import Chat, Message, User
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY

from example_bot.demo.updates import Json
from tests.servers import Server

from .pages import NOT_RUN, Block

TOKEN = "42:TEST"


class Stage:
    """Its `Redis()` is the server of the tests; what it sends is in `sent`.

    It gets the updates of `script` when it polls, or at its webhook.
    """

    def __init__(self, patch: pytest.MonkeyPatch, server: Server) -> None:
        self.sent: list[TelegramMethod[Any]] = []
        self.script: Sequence[Json] = ()
        self.replies: list[int] = []
        """The HTTP status of each answer to the webhook."""
        self.errors: dict[str, list[TelegramAPIError]] = {}
        """What the stand-in answers next to methods, by their names."""
        self.server = server
        self._ids = itertools.count(1)
        stage, made = self, aioredis.Redis.__init__

        def make(self: aioredis.Redis, *given: Any, **options: Any) -> None:
            if not given and options.get("connection_pool") is None:
                options = {"port": server.port, **options}
            made(self, *given, **options)

        async def make_request(
            _: AiohttpSession, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None
        ) -> Any:
            return stage._answer(bot, method)

        async def start_polling(self: Dispatcher, *bots: Bot, **data: Any) -> None:
            given = {"dispatcher": self, "bots": bots, **self.workflow_data, **data}
            await self.emit_startup(bot=bots[-1], **given)
            try:
                for update in stage.script:
                    await self.feed_raw_update(bots[0], update)
            finally:
                await self.emit_shutdown(bot=bots[-1], **given)

        patch.setattr(aioredis.Redis, "__init__", make)
        patch.setattr(AiohttpSession, "make_request", make_request)
        patch.setattr(Dispatcher, "start_polling", start_polling)
        patch.setattr(web, "run_app", lambda app, **_: asyncio.run(stage._serve(app)))
        for name, value in {
            "BOT_TOKEN": TOKEN,
            "SHOP_TOKEN": TOKEN,
            "SUPPORT_TOKEN": "43:TEST",
            "WEBHOOK_URL": "https://bot.example/webhook",
            "WEBHOOK_SECRET": "secret",
            "REDIS_URL": server.url,
        }.items():
            patch.setenv(name, value)

    def run(self, block: Block, *script: Json) -> dict[str, Any]:
        """Run the program, and return its names."""
        self.script = script
        return self.run_all([block])

    def run_all(self, blocks: Sequence[Block]) -> dict[str, Any]:
        """Run blocks one after the other, as a reader would type them, with `await` outside."""
        names = REGISTRY._names_to_collectors
        for collector in {names[name] for name in names if name.startswith("bot_ratelimit")}:
            REGISTRY.unregister(collector)  # as in a new process
        namespace: dict[str, Any] = {"__name__": "__main__"}
        with asyncio.Runner() as runner:
            for block in blocks:
                flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                code = compile(block.source, str(block), "exec", flags, dont_inherit=True)
                if not block.text.startswith(NOT_RUN):
                    awaitable = eval(code, namespace)
                    if awaitable is not None:
                        runner.run(awaitable)
        return namespace

    def feed(self, dispatcher: Dispatcher, *updates: Json) -> None:
        """Dispatch updates in a program that has not started its bot, and shut it down."""

        async def feed() -> None:
            for update in updates:
                await dispatcher.feed_raw_update(Bot(TOKEN), update)
            await dispatcher.emit_shutdown()

        asyncio.run(feed())

    @property
    def texts(self) -> list[str]:
        """The texts that were sent, shown or edited, in order."""
        return [text for each in self.sent if (text := getattr(each, "text", None)) is not None]

    async def _serve(self, app: web.Application) -> None:
        async with TestClient(TestServer(app)) as client:
            for update in self.script:
                headers = {"X-Telegram-Bot-Api-Secret-Token": "secret"}
                reply = await client.post("/webhook", json=update, headers=headers)
                self.replies.append(reply.status)

    def _answer(self, bot: Bot, method: TelegramMethod[Any]) -> Any:
        self.sent.append(method)
        if waiting := self.errors.get(method.__api_method__):
            raise waiting.pop(0)
        returns = method.__returning__
        if returns is User:
            return User(id=bot.id, is_bot=True, first_name="Bot", username="test_bot")
        if returns is Message or "Message" in str(returns):
            chat = getattr(method, "chat_id", 0)
            return Message(
                message_id=next(self._ids),
                date=datetime.now(UTC),
                chat=Chat(id=chat if isinstance(chat, int) else 1, type="private"),
                text=getattr(method, "text", None),
            ).as_(bot)
        return True

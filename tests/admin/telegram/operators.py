"""A bot with the operators' router, and the operators who write to it and press its buttons."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiogram import Bot, Router
from aiogram.methods import AnswerCallbackQuery, EditMessageText, SendMessage, TelegramMethod
from aiogram.methods.base import TelegramType

from bot_ratelimit import Limiter, RateLimitMiddleware, Rule
from bot_ratelimit.admin import admin_router
from bot_ratelimit.storage.base import Storage
from tests.incoming.support import (
    HANDLED,
    Instance,
    RecordingSession,
    callback,
    chat,
    message,
    user,
)

ANNA, BORIS, STRANGER = 1001, 1002, 1003
ADMINS = (ANNA, BORIS)
GROUP = chat(-100500, "supergroup")


class Session(RecordingSession):
    """Raises an error once, by the name of the method; else it returns True."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, Exception] = {}

    async def make_request(
        self, bot: Bot, method: TelegramMethod[TelegramType], timeout: int | None = None
    ) -> TelegramType:
        found = await super().make_request(bot, method, timeout)
        if error := self.errors.pop(type(method).__name__, None):
            raise error
        return found


class OperatedBot(Instance):
    """One instance of the bot, as its operators use it."""

    def __init__(self, middleware: RateLimitMiddleware, prefix: str, guard: bool) -> None:
        super().__init__(middleware, ())
        self.session = Session()
        self.bot.session = self.session
        self.middleware = middleware
        middleware.setup(self.dispatcher, guard=guard)
        own = Router()
        own.message.register(self._handle)
        own.callback_query.register(self._handle)
        self.dispatcher.include_routers(admin_router(middleware, ADMINS, prefix=prefix), own)

    async def says(
        self, text: str, by: int = ANNA, language: str | None = None, **fields: Any
    ) -> str:
        """Send a message to the bot in private, unless fields say otherwise; what it answers."""
        before = len(self.session.requests)
        standard = {"from": user(by, language), "chat": chat(by)}
        await self.feed(message=message(text, **standard | fields))
        return self._said_since(before)

    async def presses(
        self, button: str, by: int = ANNA, language: str | None = None, **fields: Any
    ) -> str:
        """Press a button of the last message, by its text or its data; what the bot answers."""
        before = len(self.session.requests)
        data = self.buttons.get(button, button)
        standard = {"from": user(by, language), "data": data}
        await self.feed(callback_query=callback(**standard | fields))
        return self._said_since(before)

    async def asks(self, text: str, yes: str, **fields: Any) -> str:
        """Give a command and say yes; what the bot answers to that."""
        await self.says(text, **fields)
        return await self.presses(yes, fields.get("by", ANNA))

    async def is_handled(self, text: str = "hi", by: int = 42, **fields: Any) -> bool:
        """Whether the bot's own handler gets a message."""
        standard = {"from": user(by), "chat": chat(by)}
        return await self.feed(message=message(text, **standard | fields)) == HANDLED

    @property
    def shown(self) -> list[SendMessage | EditMessageText]:
        """The messages that the bot sent or changed."""
        return [r for r in self.session.requests if isinstance(r, (SendMessage, EditMessageText))]

    @property
    def buttons(self) -> dict[str, str]:
        """The buttons of the last message that had any: their data by their text."""
        for each in reversed(self.shown):
            if each.reply_markup is not None:
                rows = each.reply_markup.inline_keyboard  # type: ignore[union-attr]
                return {str(b.text): str(b.callback_data) for row in rows for b in row}
        return {}

    def _said_since(self, before: int) -> str:
        said = [
            str(request.text or "")
            for request in self.session.requests[before:]
            if isinstance(request, (SendMessage, EditMessageText, AnswerCallbackQuery))
        ]
        return "\n".join(text for text in said if text)


def units(text: str) -> int:
    """The length of a message as Telegram counts it."""
    return len(html.unescape(re.sub(r"<[^>]*>", "", text)).encode("utf-16-le")) // 2


def middleware_on(storage: Storage, *rules: Any, **options: Any) -> RateLimitMiddleware:
    options = {"live": True, "on_limited": None} | options
    limiter = Limiter(storage, timeout=5, statistics=options.pop("statistics", False))
    return RateLimitMiddleware(rules or [Rule("3/h", name="messages")], limiter=limiter, **options)


@asynccontextmanager
async def operated_bot_on(
    storage: Storage, *rules: Any, prefix: str = "", guard: bool = False, **options: Any
) -> AsyncIterator[OperatedBot]:
    """An instance that has started."""
    bot = OperatedBot(middleware_on(storage, *rules, **options), prefix, guard)
    await bot.dispatcher.emit_startup()
    yield bot
    await bot.dispatcher.emit_shutdown()

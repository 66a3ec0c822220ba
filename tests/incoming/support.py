"""A bot without Telegram: tests feed updates and read the requests that it would send."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from itertools import count
from typing import Any, cast

from aiogram import Bot, Dispatcher
from aiogram.client.session.base import BaseSession
from aiogram.methods import TelegramMethod
from aiogram.methods.base import TelegramType
from aiogram.types import TelegramObject, Update

from bot_ratelimit import Decision, RateLimitMiddleware

HANDLED = "what the handler returned"

_ids = count(1)


class RecordingSession(BaseSession):
    """Records requests instead of sending them; each fails with `error`, if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[TelegramMethod[Any]] = []
        self.error: Exception | None = None

    async def make_request(
        self, bot: Bot, method: TelegramMethod[TelegramType], timeout: int | None = None
    ) -> TelegramType:
        self.requests.append(method)
        if self.error is not None:
            raise self.error
        return cast(TelegramType, True)

    async def stream_content(self, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError
        yield b""

    async def close(self) -> None:
        pass


class Instance:
    """One instance of a bot: a middleware on some observers, and a recording handler."""

    def __init__(
        self, middleware: RateLimitMiddleware | None, observers: Iterable[str] = ("message",)
    ) -> None:
        self.session = RecordingSession()
        self.bot = Bot("1:TEST", session=self.session)
        self.dispatcher = Dispatcher()
        self.handled: list[TelegramObject] = []
        self.decisions: list[Decision | None] = []
        for name in observers:
            if middleware is not None:
                self.dispatcher.observers[name].middleware(middleware)
            self.dispatcher.observers[name].register(self._handle)

    async def feed(self, **event: dict[str, Any]) -> Any:
        """Dispatch an update with this event: `feed(message=message())`."""
        update = Update.model_validate(
            {"update_id": next(_ids), **event}, context={"bot": self.bot}
        )
        return await self.dispatcher.feed_update(self.bot, update)

    async def send(self, *texts: str, **fields: Any) -> list[bool]:
        """Send messages one after the other; return which of them were handled."""
        return [await self.feed(message=message(text, **fields)) == HANDLED for text in texts]

    async def _handle(self, event: TelegramObject, rate_limit: Decision | None, **data: Any) -> str:
        self.handled.append(event)
        self.decisions.append(rate_limit)
        return HANDLED


def user(id_: int = 42, language: str | None = None) -> dict[str, Any]:
    return {"id": id_, "is_bot": False, "first_name": "Anna", "language_code": language}


def chat(id_: int = 42, kind: str = "private") -> dict[str, Any]:
    return {"id": id_, "type": kind}


def message(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A message of user 42 in their private chat, unless fields say otherwise."""
    standard = {"message_id": next(_ids), "date": 1_767_225_600, "text": text}
    return standard | {"from": user(), "chat": chat()} | fields


def callback(**fields: Any) -> dict[str, Any]:
    """A press on the button under a message of the bot."""
    pressed = message("menu", **{"from": user(1)})
    standard = {"id": str(next(_ids)), "chat_instance": "1", "data": "pressed", "from": user()}
    return standard | {"message": pressed} | fields


def inline_query(**fields: Any) -> dict[str, Any]:
    return {"id": str(next(_ids)), "query": "cat", "offset": "", "from": user()} | fields

"""Virtual time, and a Telegram in it."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, cast

from aiogram import Bot
from aiogram.client.session.base import BaseSession
from aiogram.exceptions import TelegramAPIError, TelegramNetworkError, TelegramRetryAfter
from aiogram.methods import TelegramMethod
from aiogram.types import Chat, Message
from aiohttp import ClientConnectorError
from aiohttp.client_reqrep import ConnectionKey

from bot_ratelimit import Limiter, MemoryStorage, OutgoingLimits
from example_bot.demo.floods import FloodControl
from example_bot.demo.methods import ApiError

TOKEN = "42:TEST"


class _Selector(selectors.DefaultSelector):
    """Moves the virtual time instead of waiting."""

    now = 1_000.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:  # nothing is due ever: only another thread could wake us
            if found := super().select(5):
                return found
            raise RuntimeError("every task waits, and nothing will ever happen")
        self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in virtual time, which passes only while all tasks sleep."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


class Telegram(BaseSession):
    """A session at whose other end there is a Telegram with limits, in this process.

    Args:
        floods: Its limits; none unless given.
        latency: Seconds that each request takes, half of them on the way there.
    """

    def __init__(
        self, floods: FloodControl | None = None, latency: Callable[[], float] | float = 0.02
    ) -> None:
        super().__init__()
        self.floods = floods
        self.latency = latency if callable(latency) else lambda: latency
        self.log: list[tuple[float, TelegramMethod[Any]]] = []
        """What has arrived and was taken."""
        self.left: list[TelegramMethod[Any]] = []
        """What was sent, taken or not."""
        self.errors: list[Exception | None] = []
        """Raised by the next requests, in turn; None for one that is taken."""
        self._ids = itertools.count(1)

    async def make_request(
        self, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None
    ) -> Any:
        self.left.append(method)
        latency = self.latency()
        await asyncio.sleep(latency / 2)
        try:
            self._check(method)
        except TelegramAPIError:
            await asyncio.sleep(latency / 2)
            raise
        self.log.append((now(), method))
        result = self._result(method)
        await asyncio.sleep(latency / 2)
        return result

    def _check(self, method: TelegramMethod[Any]) -> None:
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        if self.floods is None:
            return
        items = len(getattr(method, "media", None) or getattr(method, "message_ids", None) or "1")
        params = {"chat_id": str(getattr(method, "chat_id", "")), "media": str([0] * items)}
        try:
            self.floods.check(method.__api_method__, params)
        except ApiError as error:
            raise TelegramRetryAfter(method, str(error), error.retry_after or 0) from None

    def _result(self, method: TelegramMethod[Any]) -> Any:
        chat = getattr(method, "chat_id", 0)
        number = next(self._ids)
        if method.__returning__ is bool or not isinstance(chat, int):
            return True
        return Message.model_construct(
            message_id=number, chat=Chat.model_construct(id=chat), text=getattr(method, "text", "")
        )

    def texts(self, chat: int | str | None = None) -> list[str]:
        """The texts that arrived, in one chat or in all."""
        return [str(getattr(m, "text", m.__api_method__)) for _, m in self._arrived(chat)]

    def times(self, chat: int | str | None = None) -> list[float]:
        """When they arrived, in seconds since the first."""
        found = self._arrived(chat)
        return [round(at - found[0][0], 3) for at, _ in found]

    def _arrived(self, chat: int | str | None) -> list[tuple[float, TelegramMethod[Any]]]:
        return [each for each in self.log if chat in (None, getattr(each[1], "chat_id", None))]

    async def close(self) -> None:
        pass

    async def stream_content(self, *_: Any, **__: Any) -> AsyncGenerator[bytes, None]:
        yield b""


def paced(
    telegram: Telegram | None = None,
    *,
    errors: Sequence[Exception | None] = (),
    latency: Callable[[], float] | float = 0.02,
    **options: Any,
) -> tuple[Telegram, Bot, OutgoingLimits]:
    """A bot with limits on a memory storage in virtual time, and the Telegram that it talks to."""
    telegram = telegram or Telegram(latency=latency)
    telegram.errors += errors
    limiter = options.pop("limiter", None) or virtual_limiter()
    bot = Bot(TOKEN, telegram)
    outgoing = OutgoingLimits(limiter=limiter, **({"margin": 0} | options))
    return telegram, bot, outgoing.setup(bot)


def virtual_limiter() -> Limiter:
    loop = asyncio.get_running_loop()
    return Limiter(MemoryStorage(100_000, clock=loop.time), clock=loop.time)


def too_many(seconds: int) -> TelegramRetryAfter:
    """Telegram's answer to a bot that is too fast."""
    return TelegramRetryAfter(cast(Any, None), "Too Many Requests", seconds)


def no_connection() -> TelegramNetworkError:
    """The error of aiogram when Telegram cannot be reached, so that nothing was sent."""
    error = TelegramNetworkError(cast(Any, None), "ClientConnectorError")
    key = ConnectionKey("api.telegram.org", 443, True, None, None, None, None)
    error.__cause__ = ClientConnectorError(key, OSError("refused"))
    return error

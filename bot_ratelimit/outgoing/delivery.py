"""Delivery: sends a request when it has its turn and its permits, and again after a 429."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from aiogram import Bot
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.limiter.waiting_allowed import waiting_allowed
from bot_ratelimit.outgoing.chat_queue import OVERTAKE_AFTER, YOUR_TURN, ChatQueue, Request
from bot_ratelimit.outgoing.floods import Floods
from bot_ratelimit.outgoing.methods import Kind, Method
from bot_ratelimit.outgoing.pacing import Pacer
from bot_ratelimit.outgoing.sleeper import Sleeper

before_send: Final[ContextVar[Callable[[], None] | None]] = ContextVar(
    "bot_ratelimit_leaving", default=None
)
"""Called at the last moment before a request of this context is sent and Telegram may get it."""

broadcasting: Final[ContextVar[bool]] = ContextVar("bot_ratelimit_broadcasting", default=False)
"""Whether requests of this context are part of a broadcast."""


class DeliveryOptions(NamedTuple):
    """How requests are delivered, and when a request that was answered with 429 is sent again."""

    retries: int
    max_wait: float
    repeat_albums: bool
    in_order: bool


class Delivery:
    """Sends requests to Telegram.

    Args:
        pacer: Takes their permits.
        floods: Handles 429s.
        sleeper: Sleeps that end when the bot shuts down.
        options: When requests are sent again, and in which order.
        on_change: Called when a paced request starts.
    """

    def __init__(
        self,
        pacer: Pacer,
        floods: Floods,
        sleeper: Sleeper,
        options: DeliveryOptions,
        on_change: Callable[[], None],
    ) -> None:
        self.in_flight = 0
        """The number of requests that Telegram has not answered yet."""
        self.paced_in_flight = 0
        """The number of them that waited for their turn in a queue."""
        self._on_change = on_change
        self._pacer = pacer
        self._floods = floods
        self._sleeper = sleeper
        self._options = options
        self._awaiting: set[asyncio.Future[None]] = set()  # that wait until all is answered

    async def send_paced(self, queue: ChatQueue, request: Request) -> Any:
        """Wait for the turn and send, or return the outcome of a newer edit sent instead."""
        if (turn := queue.join(request)) is not None:
            try:
                outcome = await turn
            except asyncio.CancelledError:
                queue.leave(request)
                raise
            if outcome is not YOUR_TURN:
                return outcome
        entry = request.entry
        try:
            result = await self._deliver(queue, request)
        except Exception as error:
            entry.settle(request, error=error)
            queue.forget(entry)
            queue.release(entry)
            raise
        except BaseException:
            queue.leave(request)
            raise
        entry.settle(request, result)
        queue.release(entry)
        return result

    async def send_or_drop(self, queue: ChatQueue, request: Request) -> Any:
        """Send a chat action now, or drop it: it describes what the bot does at this moment."""
        if not await self._pacer.try_once(queue, request):
            return True
        try:
            return await self._send(request)
        except TelegramRetryAfter as error:
            await self._floods.on_retry_after(queue, request, error, fresh=False)
            return True

    async def unpaced(self, request: Request) -> Any:
        """Send a request that takes no permit; it waits only after a 429 of its own."""
        attempt = 0
        while True:
            try:
                return await self._send(request)
            except TelegramRetryAfter as error:
                if request.traffic.kind is Kind.OTHER:
                    self._floods.report_method(error)
                else:
                    await self._floods.on_retry_after(None, request, error, fresh=False)
                attempt += 1
                if attempt > self._options.retries or self._pacer.closed:
                    raise
                if not self._may_repeat(request, error.retry_after):
                    raise
                await self._sleeper.sleep(error.retry_after)

    async def wait_for_answers(self, timeout: float) -> None:
        """Wait until Telegram has answered everything, for `timeout` seconds at most."""
        if self.in_flight:
            answered = asyncio.get_running_loop().create_future()
            self._awaiting.add(answered)
            try:
                await asyncio.wait([answered], timeout=timeout)
            finally:
                self._awaiting.discard(answered)

    def check_session_open(self, bot: Bot, method: Method) -> None:
        """Raise NotSentError if the session is closed: a request would open it again for good."""
        if self._pacer.closed and _is_closed(bot.session):
            raise NotSentError(
                f"{method.__api_method__} was not sent: the session of the bot is closed"
            )

    async def _deliver(self, queue: ChatQueue, request: Request) -> Any:
        """Take a permit and send; repeat this after a 429."""
        entry, attempt = request.entry, 0
        while True:
            permit = await self._pacer.take(queue, request)
            if request.broadcast:
                await self._pacer.take_for_broadcast(queue, request)
            newest = queue.seal(entry)
            entry.in_flight = True
            try:
                result = await self._send(newest, queue)
            except TelegramRetryAfter as error:
                await self._floods.on_retry_after(queue, newest, error, fresh=permit.fresh)
                attempt += 1
                if attempt > self._options.retries:
                    raise
                if not self._may_repeat(newest, error.retry_after):
                    raise
            else:
                self._pacer.learn(queue, permit)
                return result
            finally:
                entry.in_flight = False
            queue.reopen(entry)
            await self._pacer.retake_turn(queue, request)

    async def _send(self, request: Request, queue: ChatQueue | None = None) -> Any:
        bot, timer = request.bot, None
        self.check_session_open(bot, request.method)
        if on_before_send := before_send.get():
            on_before_send()
        if queue is not None:
            wait = OVERTAKE_AFTER if self._options.in_order else 0
            loop = asyncio.get_running_loop()
            timer = loop.call_later(wait, queue.release, request.entry)
            self.paced_in_flight += 1
            self._on_change()
        self.in_flight += 1
        try:
            return await request.send(bot, request.method)
        finally:
            if timer is not None:
                timer.cancel()
                self.paced_in_flight -= 1
            self.in_flight -= 1
            if not self.in_flight:
                for answered in self._awaiting:
                    if not answered.done():
                        answered.set_result(None)

    def _may_repeat(self, request: Request, seconds: float) -> bool:
        if request.traffic.items and not self._options.repeat_albums:
            return False
        return waiting_allowed.get() and (request.broadcast or seconds <= self._options.max_wait)


def _is_closed(session: Any) -> bool:
    """Whether an aiohttp session was closed; aiogram has no public attribute for this."""
    client = getattr(session, "_session", None)
    return client is not None and bool(getattr(client, "closed", False))

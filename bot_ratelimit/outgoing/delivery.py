"""Delivery: sends a request when it has its turn and its permits, and again after a 429."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from aiogram import Bot
from aiogram.exceptions import TelegramAPIError

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.outgoing.chat_queue import OVERTAKE_AFTER, YOUR_TURN, ChatQueue, Request
from bot_ratelimit.outgoing.floods import Floods, describe, flood_wait
from bot_ratelimit.outgoing.methods import Method
from bot_ratelimit.outgoing.pace import Pace
from bot_ratelimit.outgoing.pacing import Pacer, Permit


class DeliveryOptions(NamedTuple):
    """How requests are delivered, and when a request that was answered with 429 is sent again."""

    retries: int
    repeat_albums: bool
    in_order: bool


class Delivery:
    """Sends requests to Telegram.

    Args:
        pacer: Takes their permits.
        floods: Handles 429s.
        options: When requests are sent again, and in which order.
        before_send: Called with each request that is about to be sent.
        on_change: Called when a paced request starts.
    """

    def __init__(
        self,
        pacer: Pacer,
        floods: Floods,
        options: DeliveryOptions,
        before_send: Callable[[Request], None],
        on_change: Callable[[], None],
    ) -> None:
        self.in_flight = 0
        """The number of requests that Telegram has not answered yet."""
        self.paced_in_flight = 0
        """The number of them that waited for their turn in a queue."""
        self._before_send = before_send
        self._on_change = on_change
        self._pacer = pacer
        self._floods = floods
        self._options = options
        self._awaiting: set[asyncio.Future[None]] = set()  # that wait until all is answered

    async def send_paced(self, queue: ChatQueue, request: Request) -> Any:
        """Wait for the turn and send, or return the outcome of a newer edit sent instead."""
        if (turn := queue.join(request)) is not None:
            outcome = await self._turn(queue, request, turn)
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

    async def send_unqueued(self, queue: ChatQueue, request: Request) -> Any:
        """Send a method beside others of its kind; after a 429 all of them send in turn."""
        now = asyncio.get_running_loop().time()
        if queue.holder is None and not queue.is_cautious(now):
            permit = await self._pacer.take(queue, request.entry)
            sent, result = await self._attempt(queue, request, permit)
            if sent:
                return result
        return await self.send_paced(queue, request)

    async def send_or_drop(self, pace: Pace, request: Request) -> Any:
        """Send a chat action now, or drop it: it describes what the bot does at this moment."""
        if await self._pacer.try_once(pace) > 0:
            return True
        try:
            return await self.send(request)
        except TelegramAPIError as error:
            if (seconds := flood_wait(error)) is None:
                raise
            await self._floods.on_flood(pace, request, seconds)
            return True

    async def send(self, request: Request) -> Any:
        """Send a request now."""
        self.check_session_open(request.bot, request.method)
        if request.broadcast is not None:
            request.broadcast.leaving()
        self._before_send(request)
        self.in_flight += 1
        try:
            return await request.send(request.bot, request.method)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                for answered in self._awaiting:
                    if not answered.done():
                        answered.set_result(None)

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

    async def _turn(self, queue: ChatQueue, request: Request, turn: asyncio.Future[Any]) -> Any:
        """Wait for the turn; return YOUR_TURN, or the outcome of a newer edit."""
        timeout = asyncio.timeout_at(request.deadline)
        try:
            async with timeout:
                return await turn
        except TimeoutError:
            if not timeout.expired():  # the outcome of a newer edit
                raise
            queue.leave(request)
            raise NotSentError(
                f"{describe(request)} was not sent: other requests to this chat came first"
            ) from None
        except asyncio.CancelledError:
            queue.leave(request)
            raise

    async def _deliver(self, queue: ChatQueue, request: Request) -> Any:
        """Take a permit and send; repeat this after a 429."""
        entry = request.entry
        while True:
            permit = await self._pacer.take(queue, entry)
            await self._pacer.take_for_broadcast(queue, entry)
            newest = queue.seal(entry)
            sent, result = await self._attempt(queue, newest, permit, in_turn=True)
            if sent:
                return result
            queue.reopen(entry)
            await self._pacer.retake_turn(queue, request)

    async def _attempt(
        self, queue: ChatQueue, request: Request, permit: Permit, *, in_turn: bool = False
    ) -> tuple[bool, Any]:
        """Send once; return whether the request was accepted, and its result.

        Raises:
            Exception: Telegram's error, if the request must not be sent again.
        """
        try:
            result = await (self._send_in_turn(queue, request) if in_turn else self.send(request))
        except TelegramAPIError as error:
            if (seconds := flood_wait(error)) is None:
                raise
            if request.broadcast is not None:
                request.broadcast.refused()
            await self._floods.on_flood(queue, request, seconds, quiet=permit.quiet)
            request.attempts += 1
            if request.attempts > self._options.retries:
                raise
            if request.traffic.items and not self._options.repeat_albums:
                raise
            if not self._pacer.may_repeat(queue, request, seconds):
                raise
            return False, None
        self._pacer.answered(queue, permit)
        return True, result

    async def _send_in_turn(self, queue: ChatQueue, request: Request) -> Any:
        """Send; if the answer is late, the next request of the chat does not wait for it."""
        wait = OVERTAKE_AFTER if self._options.in_order else 0
        loop, entry = asyncio.get_running_loop(), request.entry
        timer = loop.call_later(wait, queue.release, entry)
        entry.in_flight = True
        self.paced_in_flight += 1
        self._on_change()
        try:
            return await self.send(request)
        finally:
            timer.cancel()
            entry.in_flight = False
            self.paced_in_flight -= 1


def _is_closed(session: Any) -> bool:
    """Whether an aiohttp session was closed; aiogram has no public attribute for this."""
    client = getattr(session, "_session", None)
    return client is not None and bool(getattr(client, "closed", False))

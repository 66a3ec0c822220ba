"""Delivery: one request's way through its lane, to Telegram, and again after a 429."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from aiogram import Bot
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.may_wait import may_wait
from bot_ratelimit.outgoing.floods import Floods
from bot_ratelimit.outgoing.lane import OVERTAKE_AFTER, YOUR_TURN, Lane, Request
from bot_ratelimit.outgoing.methods import Kind, Method
from bot_ratelimit.outgoing.naps import Naps
from bot_ratelimit.outgoing.pacing import Pacer

leaving: Final[ContextVar[Callable[[], None] | None]] = ContextVar(
    "bot_ratelimit_leaving", default=None
)
"""Called when a request of this context leaves, just before Telegram may have got it."""

broadcasting: Final[ContextVar[bool]] = ContextVar("bot_ratelimit_broadcasting", default=False)
"""Whether what is sent in this context is part of a broadcast."""


class Terms(NamedTuple):
    """When a request that was answered with 429 is sent again."""

    retries: int
    max_wait: float
    repeat_albums: bool
    in_order: bool


class Delivery:
    """Brings requests to Telegram.

    Args:
        pacer: Takes their places.
        floods: Hears of 429s.
        naps: Sleeps that end with the bot.
        terms: When they are repeated.
        changed: Called when one that took a place has left.
    """

    def __init__(
        self,
        pacer: Pacer,
        floods: Floods,
        naps: Naps,
        terms: Terms,
        changed: Callable[[], None],
    ) -> None:
        self.in_flight = 0
        """How many requests Telegram has not answered yet."""
        self.paced_in_flight = 0
        """How many of them took their turn in a lane."""
        self._changed = changed
        self._pacer = pacer
        self._floods = floods
        self._naps = naps
        self._terms = terms
        self._landed = asyncio.Event()

    async def in_turn(self, lane: Lane, request: Request) -> Any:
        """Wait for the turn, or for the outcome of the newer edit that is sent instead."""
        if (turn := lane.join(request)) is not None:
            try:
                outcome = await turn
            except asyncio.CancelledError:
                lane.leave(request)
                raise
            if outcome is not YOUR_TURN:
                return outcome
        slot = request.slot
        try:
            result = await self._deliver(lane, request)
        except Exception as error:
            slot.settle(request, error=error)
            lane.forget(slot)
            lane.release(slot)
            raise
        except BaseException:
            lane.leave(request)
            raise
        slot.settle(request, result)
        lane.release(slot)
        return result

    async def now_or_never(self, lane: Lane, request: Request) -> Any:
        """A chat action, which says what the bot does at this moment, or nothing."""
        if not await self._pacer.try_once(lane, request):
            return True
        try:
            return await self._send(request)
        except TelegramRetryAfter as error:
            await self._floods.met(lane, request, error, fresh=False)
            return True

    async def unpaced(self, request: Request) -> Any:
        """What takes no place, but waits after a 429 of its own."""
        attempt = 0
        while True:
            try:
                return await self._send(request)
            except TelegramRetryAfter as error:
                if request.traffic.kind is Kind.OTHER:
                    self._floods.met_alone(error)
                else:
                    await self._floods.met(None, request, error, fresh=False)
                attempt += 1
                if attempt > self._terms.retries or self._pacer.closed:
                    raise
                if not self._repeats(request, error.retry_after):
                    raise
                await self._naps.sleep(error.retry_after)

    async def landed(self, timeout: float) -> None:
        """Wait until Telegram has answered everything, or the time is over."""
        if self.in_flight:
            self._landed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._landed.wait(), timeout)

    def refuse_if_closed(self, bot: Bot, method: Method) -> None:
        """A session that was closed would open itself again for a late request, and stay open."""
        if self._pacer.closed and _is_closed(bot.session):
            raise NotSentError(
                f"{method.__api_method__} was not sent: the session of the bot is closed"
            )

    async def _deliver(self, lane: Lane, request: Request) -> Any:
        """Take a place, send, and do so again after a 429."""
        slot, attempt = request.slot, 0
        while True:
            place = await self._pacer.take(lane, request)
            if request.broadcast:
                await self._pacer.take_for_broadcast(lane, request)
            newest = lane.seal(slot)
            slot.in_flight = True
            try:
                result = await self._send(newest, lane)
            except TelegramRetryAfter as error:
                await self._floods.met(lane, newest, error, fresh=place.fresh)
                attempt += 1
                if attempt > self._terms.retries or not self._repeats(newest, error.retry_after):
                    raise
            else:
                self._pacer.learn(lane, place)
                return result
            finally:
                slot.in_flight = False
            lane.reopen(slot)
            await self._pacer.regain(lane, request)

    async def _send(self, request: Request, lane: Lane | None = None) -> Any:
        bot, timer = request.bot, None
        self.refuse_if_closed(bot, request.method)
        if on_leaving := leaving.get():
            on_leaving()
        if lane is not None:
            wait = OVERTAKE_AFTER if self._terms.in_order else 0
            loop = asyncio.get_running_loop()
            timer = loop.call_later(wait, lane.release, request.slot)
            self.paced_in_flight += 1
            self._changed()
        self.in_flight += 1
        try:
            return await request.send(bot, request.method)
        finally:
            if timer is not None:
                timer.cancel()
                self.paced_in_flight -= 1
            self.in_flight -= 1
            if not self.in_flight:
                self._landed.set()

    def _repeats(self, request: Request, seconds: float) -> bool:
        if request.traffic.items and not self._terms.repeat_albums:
            return False
        return may_wait.get() and (request.broadcast or seconds <= self._terms.max_wait)


def _is_closed(session: Any) -> bool:
    """Whether an aiohttp session was closed; it says so in nothing that is public."""
    client = getattr(session, "_session", None)
    return client is not None and bool(getattr(client, "closed", False))

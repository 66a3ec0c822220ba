"""What a 429 means: who is blocked until when, on every instance, and how fast it goes on then."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Final

from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit.decision import Decision
from bot_ratelimit.limiter import Limiter
from bot_ratelimit.observer import Observer
from bot_ratelimit.outgoing.budgets import Budgets, subject_of
from bot_ratelimit.outgoing.lane import Lane, Request
from bot_ratelimit.penalty import Penalty, blocking

log = logging.getLogger("bot_ratelimit")

CAUTIOUS_FOR: Final = 60.0
"""Seconds after a 429 during which its chat goes at half its pace: it was wrong for this chat."""
_SLOWEST: Final = 5
# So many chats that had been quiet and are refused within a second: it is not about the chats.
_MANY: Final = 3
_TOGETHER: Final = 1.0
# A line for each 429 would be a flood of its own.
_LOG_EVERY: Final = 5.0


class Floods:
    """Remembers until when Telegram wants silence.

    A block is a key in the storage, which every instance reads in the very command that takes its
    place, so that none has to ask Telegram to find out. What this process was told itself, it
    also remembers, in case the storage is away.

    Args:
        limiter: Decides about places, and keeps the blocks.
        budgets: The rules that read them.
        observer: Hears of each 429.
    """

    def __init__(
        self, limiter: Limiter, budgets: Budgets, observer: Observer | None = None
    ) -> None:
        self._observer = observer
        self._limiter = limiter
        self._budgets = budgets
        self._bots: dict[int, float] = {}
        self._fresh: deque[tuple[float, int, int | str]] = deque(maxlen=_MANY)
        self._log_again = 0.0

    def rest(self, lane: Lane, bot: int) -> float:
        """Seconds that are left of what this process knows of; 0.0 or less if nothing."""
        now = asyncio.get_running_loop().time()
        return max(lane.blocked_until, self._bots.get(bot, 0.0)) - now

    def heard(self, lane: Lane, bot: int, decision: Decision) -> bool:
        """Note a refusal; True if it is a block that was met, and not a budget that is used up."""
        if not decision.banned or not isinstance(decision.rule, Penalty):
            return False
        if decision.rule.path == self._budgets.bot_block.path:
            self._block_bot(bot, decision.retry_after)
        else:
            self._block_chat(lane, decision.retry_after)
        return True

    async def met(
        self, lane: Lane | None, request: Request, error: TelegramRetryAfter, *, fresh: bool
    ) -> None:
        """Block the chat, or the bot, for as long as Telegram says.

        Args:
            lane: The chat's; None for a request to no chat.
            request: What Telegram refused.
            error: Its answer.
            fresh: Whether the chat had been quiet, so that it cannot be the chat's own limit.
        """
        bot, seconds = request.bot.id, float(error.retry_after)
        whole_bot = lane is None or (fresh and self._is_common(bot, lane))
        self._tell(request, lane, seconds, whole_bot)
        if self._observer is not None:
            self._observer.flood_waited("bot" if whole_bot else "chat", seconds)
        if lane is not None:
            self._block_chat(lane, seconds)
            subject = subject_of(bot, lane.chat, _business(request))
            rule = self._budgets.chat_block(lane.chat)
            await self._limiter.hit(blocking(rule, seconds), subject, _tell=False, _outgoing=True)
        if whole_bot:
            self._block_bot(bot, seconds)
            rule, subject = self._budgets.bot_block, subject_of(bot, "", None)
            await self._limiter.hit(blocking(rule, seconds), subject, _tell=False, _outgoing=True)

    def met_alone(self, error: TelegramRetryAfter) -> None:
        """Tell of a 429 to a method that takes no place: it blocks nothing else."""
        if self._observer is not None:
            self._observer.flood_waited("method", float(error.retry_after))

    def _block_chat(self, lane: Lane, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        if lane.blocked_until <= now:  # not the same one once more
            lane.slow = min(lane.slow + 1, _SLOWEST) if now < lane.slow_until else 1
        lane.blocked_until = max(lane.blocked_until, now + seconds)
        lane.slow_until = lane.blocked_until + CAUTIOUS_FOR
        lane.idle_until = max(lane.idle_until, lane.slow_until)

    def _block_bot(self, bot: int, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        self._bots[bot] = max(self._bots.get(bot, 0.0), until)

    def _is_common(self, bot: int, lane: Lane) -> bool:
        """Whether several chats that had been quiet were refused at the same time."""
        now = asyncio.get_running_loop().time()
        others = {chat for _, whose, chat in self._fresh if whose == bot}
        if lane.chat not in others:
            self._fresh.append((now, bot, lane.chat))
        recent = [1 for at, whose, _ in self._fresh if whose == bot and now - at <= _TOGETHER]
        return len(recent) >= _MANY

    def _tell(self, request: Request, lane: Lane | None, seconds: float, whole_bot: bool) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._log_again:
            return
        self._log_again = now + _LOG_EVERY
        log.warning(
            "Telegram refused %s (429): %s sends nothing for %.0f s, on every instance",
            describe(request),
            "this bot" if whole_bot or lane is None else f"to chat {lane.chat} this bot",
            seconds,
        )


def retry_after(request: Request, seconds: float) -> TelegramRetryAfter:
    """The error that Telegram would answer with, had it been asked."""
    return TelegramRetryAfter(
        request.method,
        "still blocked by an earlier 429; Telegram was not asked",
        math.ceil(seconds),
    )


def describe(request: Request) -> str:
    """A request in the words of a log: `sendMessage to chat 42`."""
    name = request.method.__api_method__
    chat = getattr(request.method, "chat_id", None)
    return name if chat is None else f"{name} to chat {chat}"


def _business(request: Request) -> str | None:
    return getattr(request.method, "business_connection_id", None)

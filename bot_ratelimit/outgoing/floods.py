"""Floods: what a 429 blocks, for how long, and how the pace continues, on all instances."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Final

from aiogram.exceptions import TelegramAPIError, TelegramRetryAfter
from cachetools import TLRUCache

from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import FloodScope, Observer
from bot_ratelimit.outgoing.budgets import Budgets
from bot_ratelimit.outgoing.chat_queue import Request
from bot_ratelimit.outgoing.methods import Kind
from bot_ratelimit.outgoing.pace import Pace
from bot_ratelimit.outgoing.permits import Permits
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

# If this many quiet chats are refused within a second, the limit is the bot's and not the chats'.
_MANY: Final = 3
_TOGETHER: Final = 1.0
# One line for each 429 would flood the log.
_LOG_EVERY: Final = 5.0
# A 429 may come without a time, or with any number; Telegram's longest known wait is 12 hours.
_SHORTEST: Final = 1.0
_LONGEST: Final = 86_400.0
_MANY_BLOCKS: Final = 1_000
_REPORTED: Final = 50
_SCOPES: Final[dict[Kind, FloodScope]] = {
    Kind.MESSAGE: "chat",
    Kind.DRAFT: "draft",
    Kind.ACTION: "action",
    Kind.METHOD: "method",
}


def flood_wait(error: BaseException) -> float | None:
    """The seconds to wait after a 429; None for any other error."""
    if isinstance(error, TelegramRetryAfter):
        return min(max(float(error.retry_after or 0), _SHORTEST), _LONGEST)
    # aiogram has no class for a 429 without a time, or with the time 0.
    if type(error) is TelegramAPIError and error.message.startswith("Too Many Requests"):
        return _SHORTEST
    return None


class Floods:
    """Remembers what Telegram has blocked.

    A block is a key in the storage. Each instance reads it in the same command that takes a permit,
    so that an instance need not get a 429 itself to learn of it. This process also remembers its
    own 429s, in case the storage is unreachable.
    """

    def __init__(self, permits: Permits, budgets: Budgets, observer: Observer) -> None:
        self._permits = permits
        self._budgets = budgets
        self._observer = observer
        self._blocks: TLRUCache[tuple[int, FloodScope, str], float] = TLRUCache(
            _MANY_BLOCKS, ttu=lambda _, until, __: until, timer=_now
        )
        self._bots: dict[int, float] = {}
        self._quiet: dict[int, dict[int | str, float]] = {}  # when, by bot and chat
        # By whether the whole bot is blocked: lines about chats must not hide that one.
        self._unlogged = Seldom(_LOG_EVERY), Seldom(_LOG_EVERY)

    def blocked_for(self, pace: Pace) -> float:
        """Seconds until the blocks that this process knows of end; 0.0 or less without a block."""
        until = pace.blocked_until
        if pace.key.kind is Kind.MESSAGE:
            until = max(until, self._bots.get(pace.key.bot, 0.0))
        return until - asyncio.get_running_loop().time()

    def note_refusal(self, pace: Pace, decision: Decision) -> bool:
        """Record a refusal; return True if a block refused, and False if a budget is used up."""
        if not decision.banned or not isinstance(decision.rule, Penalty):
            return False
        if decision.rule.path == self._budgets.bot_block.path:
            self._block_bot(pace.key.bot, decision.retry_after)
        else:
            pace.block(asyncio.get_running_loop().time(), decision.retry_after)
        return True

    async def on_flood(
        self, pace: Pace, request: Request, seconds: float, *, quiet: bool = False
    ) -> None:
        """Block requests like this one for as long as Telegram says.

        Args:
            pace: The pace of these requests.
            request: The request that Telegram refused.
            seconds: How long.
            quiet: Whether the chat had been quiet, so that its own limit cannot be the reason.
        """
        bot = pace.key.bot
        whole_bot = quiet and self._many_chats_refused(pace)
        self._log(request, pace, seconds, whole_bot)
        scope: FloodScope = "bot" if whole_bot else _SCOPES[pace.key.kind]
        self._observer.flood_waited(scope, seconds)
        what = "" if whole_bot else str(pace.key.method or pace.key.chat)
        self._blocks[bot, scope, what] = _now() + seconds
        pace.block(asyncio.get_running_loop().time(), seconds, request.left_at)
        await self._permits.block(self._budgets.block(pace), pace.subject, seconds)
        if whole_bot:
            self._block_bot(bot, seconds)
            await self._permits.block(self._budgets.bot_block, Subject(bot=bot), seconds)

    def in_force(self) -> list[tuple[int, FloodScope, str, float]]:
        """Blocks by 429s that this process got: bot, scope, chat or method, end in Unix seconds."""
        ahead = time.time() - _now()
        blocks = [(key, self._blocks.get(key)) for key in list(self._blocks)]
        found = [(*key, until + ahead) for key, until in blocks if until]
        return sorted(found, key=lambda each: each[-1], reverse=True)[:_REPORTED]

    def report_unpaced(self, error: BaseException) -> None:
        """Report a 429 of a method that never waits to the observers; it blocks nothing."""
        if (seconds := flood_wait(error)) is not None:
            self._observer.flood_waited("method", seconds)

    def _block_bot(self, bot: int, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        self._bots[bot] = max(self._bots.get(bot, 0.0), until)

    def _many_chats_refused(self, pace: Pace) -> bool:
        """Whether several quiet chats were refused at about the same time."""
        now, known = _now(), self._quiet.get(pace.key.bot, {})
        recent = {chat: at for chat, at in known.items() if now - at <= _TOGETHER}
        self._quiet[pace.key.bot] = recent | {pace.key.chat: now}
        return len(self._quiet[pace.key.bot]) >= _MANY

    def _log(self, request: Request, pace: Pace, seconds: float, whole_bot: bool) -> None:
        if not (count := self._unlogged[whole_bot].due()):
            return
        log.warning(
            "Telegram refused %s (429): this bot sends %s for %.0f s%s",
            describe(request),
            _held_back(pace, whole_bot),
            seconds,
            f"; {count - 1} more 429s since the last line" if count > 1 else "",
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _held_back(pace: Pace, whole_bot: bool) -> str:
    if whole_bot:
        return "no messages"
    if pace.key.kind is Kind.METHOD:
        return f"no {pace.key.method}"
    what = {Kind.DRAFT: "drafts", Kind.ACTION: "chat actions"}.get(pace.key.kind, "messages")
    return f"no {what} to chat {pace.key.chat}"


def retry_after(request: Request, seconds: float) -> TelegramRetryAfter:
    """The error that Telegram would have answered with."""
    return TelegramRetryAfter(
        request.method,
        "still blocked by an earlier 429; Telegram was not asked",
        math.ceil(seconds),
    )


def describe(request: Request) -> str:
    """Describe a request for logs and errors: `sendMessage to chat 42`."""
    name = request.method.__api_method__
    chat = getattr(request.method, "chat_id", None)
    return name if chat is None else f"{name} to chat {chat}"

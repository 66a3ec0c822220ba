"""Pace: what this process knows about one kind of requests to one chat: blocks and 429s."""

from __future__ import annotations

from typing import Final, NamedTuple

from bot_ratelimit.outgoing.methods import Kind
from bot_ratelimit.rules.rule import Subject

CAUTIOUS_FOR: Final = 60.0
"""Seconds after a block in which another 429 shows that the normal pace is too fast."""
# Redis rounds the end of a block up, so its last milliseconds are not a new block.
_SAME_BLOCK: Final = 0.1


class PaceKey(NamedTuple):
    """Which requests share a pace: a 429 holds back its own kind only."""

    bot: int
    kind: Kind
    """MESSAGE for messages and edits, DRAFT, ACTION, or METHOD."""
    chat: int | str
    """The chat; empty for a method that names none."""
    business: str | None = None
    method: str = ""
    """The method of kind METHOD, for example `banChatMember`."""


class Pace:
    """Blocks and 429s of the requests that share a key."""

    __slots__ = ("blocked_until", "idle_until", "is_slow", "key", "slow_until", "subject")

    def __init__(self, key: PaceKey) -> None:
        self.key = key
        self.blocked_until = self.slow_until = self.idle_until = 0.0
        self.is_slow = False
        chat = key.chat if isinstance(key.chat, int) else None
        self.subject = Subject(chat=chat, bot=key.bot, business=key.business)

    def is_idle(self, now: float) -> bool:
        """Whether this can be dropped because nothing of it needs to be remembered."""
        return now >= self.idle_until

    def is_cautious(self, now: float) -> bool:
        """Whether there was a block within the last minute."""
        return now < self.slow_until

    def slow(self, now: float) -> bool:
        """Whether the pace is halved now.

        The first 429 may be an accident, so only a second one within a minute halves the pace of
        messages. A method has no budget, so in a chat its first 429 counts. Drafts and actions are
        dropped.
        """
        return self.is_slow and self.is_cautious(now)

    def block(self, now: float, seconds: float, left_at: float | None = None) -> None:
        """Send nothing for `seconds`; of two blocks the later end wins.

        Args:
            now: The time, by the loop's clock.
            seconds: How long.
            left_at: When the refused request left; None if another instance met the 429.
        """
        if (now - _SAME_BLOCK if left_at is None else left_at) >= self.blocked_until:
            kind, in_chat = self.key.kind, self.key.chat != ""
            counts = self.is_cautious(now) and kind in (Kind.MESSAGE, Kind.METHOD)
            self.is_slow = counts or (kind is Kind.METHOD and in_chat)
        self.blocked_until = max(self.blocked_until, now + seconds)
        self.slow_until = self.blocked_until + CAUTIOUS_FOR
        self.idle_until = max(self.idle_until, self.slow_until)

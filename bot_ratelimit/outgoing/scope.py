"""BroadcastScope: what is sent in a context belongs to a broadcast."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from bot_ratelimit.outgoing.methods import Method


class BroadcastScope:
    """Is told of each request that is sent as part of a broadcast; does nothing by default."""

    def leaving(self) -> None:
        """A request is about to be sent, and Telegram may get it."""

    def refused(self) -> None:
        """The request that was sent last was answered with 429: Telegram did not accept it."""

    def priced(self, method: Method) -> Method:
        """The request to send now: the same, or an unpaid one if the Stars are spent.

        Raises:
            NotSentError: The Stars are spent, and the broadcast stops.
        """
        return method


broadcast_scope: Final[ContextVar[BroadcastScope | None]] = ContextVar(
    "bot_ratelimit_broadcast", default=None
)
"""The broadcast that requests of this context are part of; None for replies."""

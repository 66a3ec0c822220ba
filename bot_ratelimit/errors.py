"""What can go wrong. A refusal is not an error: it is a `Decision`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bot_ratelimit.decision import Decision


class RateLimitError(Exception):
    """The base of every error this package raises."""


class ConfigError(RateLimitError, ValueError):
    """Something was set up wrongly; the message names it, its value and the fix."""

    kind: str = "config"
    """In a word, for logs and statistics: the code of a Redis error in lower case, if it is one."""


class StorageError(RateLimitError):
    """The storage could not answer: out of reach, too slow, or unable to serve now.

    Whether the hit was charged is unknown, so it is never repeated.

    Args:
        message: What happened, to which server.
        kind: In a word, for statistics: `"timeout"`, `"refused"`, `"connection"`, `"dns"`,
            `"auth"`, `"tls"`, `"closed"`, `"queue_full"`, `"not_connected"`, or the code of a
            Redis error in lower case, such as `"loading"`.
    """

    def __init__(self, message: str, *, kind: str = "unavailable") -> None:
        super().__init__(message)
        self.kind = kind


class NotConnectedError(StorageError):
    """There is no connection to the server at the moment; nothing was sent or charged."""

    def __init__(self, message: str, *, kind: str = "not_connected") -> None:
        super().__init__(message, kind=kind)


class QueueFullError(StorageError):
    """Too many decisions wait for the server already; nothing was sent or charged.

    The server may well be alive, so this does not count as an outage.
    """

    def __init__(self, message: str, *, kind: str = "queue_full") -> None:
        super().__init__(message, kind=kind)


class NotSentError(RateLimitError):
    """A request was not sent: it would have had to wait, and may not, or the bot is ending."""


class SendQueueFullError(RateLimitError):
    """A request was not sent: too many wait for the same chat, or in this process, already."""


class RefusedError(RateLimitError):
    """A refusal, for code that has no use for a value: `async with limiter.limit(...)`.

    Args:
        decision: The refusal; `retry_after` says for how long.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"refused by {decision.rule}: try again in {decision.retry_after:.1f} s")
        self.decision = decision

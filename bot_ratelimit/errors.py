"""What can go wrong. A refusal is not an error: it is a `Decision`."""

from __future__ import annotations


class RateLimitError(Exception):
    """The base of every error this package raises."""


class ConfigError(RateLimitError, ValueError):
    """Something was set up wrongly; the message names it, its value and the fix."""


class StorageError(RateLimitError):
    """The storage could not answer: out of reach, too slow, or unable to serve now.

    Whether the hit was charged is unknown, so it is never repeated.
    """


class NotSentError(RateLimitError):
    """A request was not sent: it would have had to wait, and may not, or the bot is ending."""


class SendQueueFullError(RateLimitError):
    """A request was not sent: too many wait for the same chat, or in this process, already."""

"""How long requests to Telegram may wait: set by the caller, read by `outgoing`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import number

patience: Final[ContextVar[float | None]] = ContextVar("bot_ratelimit_patience", default=None)
"""Seconds that a request may wait in all; None for the options of `OutgoingLimits`."""


@contextmanager
def waiting_up_to(seconds: float) -> Iterator[None]:
    """Each request made inside waits up to `seconds`, for its turn, its budget and after a 429.

    ::

        with waiting_up_to(60):
            await bot.send_message(chat, answer)

    It is for messages that must not get lost, such as the answer of an AI. If Telegram demands a
    longer wait, the request raises `TelegramRetryAfter` at once, as with `max_wait`; if there is
    another reason, it raises `NotSentError`. A bot without `OutgoingLimits` is not affected.

    Args:
        seconds: For each request, from its call on; 0 is the same as `without_waiting()`.

    Raises:
        ConfigError: `seconds` is not a number from 0 up.
    """
    if not number(seconds) >= 0:
        raise ConfigError(f"waiting_up_to({seconds!r}): expected seconds from 0 up, for example 60")
    token = patience.set(number(seconds))
    try:
        yield
    finally:
        patience.reset(token)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Requests made inside are sent at once, or fail with `NotSentError`; none is repeated.

    ::

        with without_waiting():
            await bot.send_message(chat, "Did you know?")

    It is for messages that are of no use later, such as a notice to a user who sends too fast. A
    bot without `OutgoingLimits` is not affected.
    """
    with waiting_up_to(0):
        yield

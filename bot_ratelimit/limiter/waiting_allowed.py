"""Whether requests to Telegram may wait: set by the caller, read by `outgoing`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

waiting_allowed: Final[ContextVar[bool]] = ContextVar("bot_ratelimit_may_wait", default=True)
"""False inside of `without_waiting`."""


@contextmanager
def without_waiting() -> Iterator[None]:
    """Requests made inside are sent at once, or fail with `NotSentError`; none is repeated.

    ::

        with without_waiting():
            await bot.send_message(chat, "Did you know?")

    It is for messages that are of no use later, such as a notice to a user who sends too fast. A
    bot without `OutgoingLimits` is not affected.
    """
    token = waiting_allowed.set(False)
    try:
        yield
    finally:
        waiting_allowed.reset(token)

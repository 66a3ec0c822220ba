"""Sent: the outcome of a broadcast for one chat."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from aiogram.exceptions import (
    TelegramAPIError,
    TelegramBadRequest,
    TelegramEntityTooLarge,
    TelegramForbiddenError,
    TelegramNetworkError,
    TelegramServerError,
)
from aiohttp import ClientConnectorError

T = TypeVar("T", bound="int | str")

_UNCLEAR: Final = (TelegramNetworkError, TelegramServerError)


class Status(Enum):
    """The outcome of a broadcast for one chat.

    ============  ==================================================================
    `SENT`        `send` returned
    `MIGRATED`    the group has become a supergroup, and got it there
    `BLOCKED`     the user has blocked the bot, or the chat has removed it
    `GONE`        there is no such chat, or its user is deleted
    `FAILED`      Telegram refused it, or nothing was sent; the same journal tries it again
    `UNKNOWN`     all or a part of it may have been delivered, or no request was seen; it is not
                  sent again
    ============  ==================================================================

    If `send` raises another error in place of that of a request, or an `ExceptionGroup`, and sends
    nothing else through this bot, the outcome is that of the request. So it is if `send` catches
    the error, but with `UNKNOWN` in place of `FAILED`: it may have sent the message another way.
    """

    SENT = "sent"
    MIGRATED = "migrated"
    BLOCKED = "blocked"
    GONE = "gone"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sent(Generic[T]):
    """The outcome for one chat of a broadcast; `bool(sent)` is whether the message is there.

    Attributes:
        chat: The chat, as it was given to `OutgoingLimits.broadcast`.
        status: What happened.
        result: What `send` returned; None unless it returned.
        error: What `send` raised. If the chat got nothing, the error of a request, which `send` may
            have caught or replaced; None without an error.
        moved_to: Id of the supergroup that the group has become; None unless it has.
    """

    chat: T
    status: Status
    result: Any = None
    error: Exception | None = None
    moved_to: int | None = None

    def __bool__(self) -> bool:
        return self.status in (Status.SENT, Status.MIGRATED)


def status_of(error: Exception) -> Status:
    """The status of a chat after this error."""
    text = str(error).lower()
    if isinstance(error, TelegramForbiddenError):
        return Status.GONE if "deactivated" in text else Status.BLOCKED
    if isinstance(error, TelegramBadRequest):
        gone = ("chat not found", "user not found", "peer_id_invalid")
        return Status.GONE if any(each in text for each in gone) else Status.FAILED
    unclear = isinstance(error, TelegramAPIError) and not was_refused(error)
    return Status.UNKNOWN if unclear else Status.FAILED


def was_refused(error: TelegramAPIError) -> bool:
    """Whether Telegram has certainly not taken the request."""
    # A file that is too large is a network error to aiogram, but it is an answer: 413.
    is_answer = isinstance(error, TelegramEntityTooLarge) or not isinstance(error, _UNCLEAR)
    return is_answer or never_left(error)


def never_left(error: Exception) -> bool:
    """Whether there was no connection, so that the request cannot have been sent."""
    return isinstance(error, TelegramNetworkError) and isinstance(
        error.__cause__, ClientConnectorError
    )

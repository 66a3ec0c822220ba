"""Sent: what came of one chat of a broadcast, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramForbiddenError,
    TelegramNetworkError,
    TelegramServerError,
)
from aiohttp import ClientConnectorError

T = TypeVar("T", bound="int | str")


class Status(Enum):
    """What came of it."""

    SENT = "sent"
    """`send` returned."""
    MIGRATED = "migrated"
    """The group has become a supergroup; it was sent there, to `Sent.moved_to`."""
    BLOCKED = "blocked"
    """The user has blocked the bot, or the chat has thrown it out."""
    GONE = "gone"
    """There is no such chat, or its user is deleted."""
    FAILED = "failed"
    """Telegram refused it, or nothing was sent; a run with the same journal tries it again."""
    UNKNOWN = "unknown"
    """All or a part of it may have been delivered; it is not sent again."""


@dataclass(frozen=True, slots=True)
class Sent(Generic[T]):
    """One chat of a broadcast. True if the message is there."""

    chat: T
    status: Status
    result: Any = None
    """What `send` returned."""
    error: Exception | None = None
    """What it raised."""
    moved_to: int | None = None
    """The id of the supergroup that a group has become."""

    def __bool__(self) -> bool:
        return self.status in (Status.SENT, Status.MIGRATED)


def status_of(error: Exception) -> Status:
    """What an error says about the chat."""
    text = str(error).lower()
    if isinstance(error, TelegramForbiddenError):
        return Status.GONE if "deactivated" in text else Status.BLOCKED
    if isinstance(error, TelegramBadRequest):
        gone = ("chat not found", "user not found", "peer_id_invalid")
        return Status.GONE if any(each in text for each in gone) else Status.FAILED
    if isinstance(error, (TelegramNetworkError, TelegramServerError)):
        return Status.FAILED if never_left(error) else Status.UNKNOWN
    return Status.FAILED


def never_left(error: Exception) -> bool:
    """Whether there was no connection over which the request could have been sent."""
    return isinstance(error, TelegramNetworkError) and isinstance(
        error.__cause__, ClientConnectorError
    )

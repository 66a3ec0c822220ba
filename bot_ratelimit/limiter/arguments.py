"""Checks of what a Limiter is asked about: a storage, a subject, a ban."""

from __future__ import annotations

import math
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import describe_type, seconds_of
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Storage

FOREVER: Final = 10 * 365 * 86_400.0
"""`retry_after` of a permanent ban, in seconds; also the longest ban that ends."""
_MAX_TEXT: Final = 500


def check_storage(storage: object) -> Storage:
    """Return the storage; another object would let every update fail."""
    if not isinstance(storage, Storage):
        raise ConfigError(
            f"storage is {describe_type(storage)}, which is not a storage: pass an instance, such "
            "as RedisStorage(client) or MemoryStorage(); a custom storage derives from "
            "bot_ratelimit.storage.base.Storage"
        )
    return storage


def check_subject(subject: object) -> Subject:
    """Return the subject."""
    if not isinstance(subject, Subject):
        raise ConfigError(f"subject={subject!r}: expected a Subject, for example Subject(user=42)")
    return subject


def check_target(subject: object) -> Subject:
    """Return the subject of a ban, which names a user or a chat."""
    subject = check_subject(subject)
    if subject.user is None and subject.chat is None:
        raise ConfigError(
            "the subject of a ban names nobody: give a user, a chat or both, for example "
            "Subject(user=42)"
        )
    for name in ("user", "chat", "bot"):
        if getattr(subject, name) is not None:
            check_number(name, getattr(subject, name))
    return subject


def check_number(name: str, value: object) -> int:
    """Return an id, which must be a whole number."""
    if type(value) is not int:
        raise ConfigError(f"{name}={value!r}: expected an id, a whole number, for example 42")
    return value


def check_bannable(subject: object) -> Subject:
    """Return a subject that can be banned by hand: a user, a chat, or a user in a chat."""
    subject = check_target(subject)
    if subject.topic is not None or subject.business is not None:
        raise ConfigError(
            f"{subject!r}: a user, a chat or a user in a chat can be banned, for example "
            "Subject(user=42, chat=-100123)"
        )
    return subject


def check_ban_length(value: object) -> float:
    """Return the length of a ban in seconds; infinity for None."""
    if value is None:
        return math.inf
    seconds = seconds_of(value)
    if 0 < seconds <= FOREVER:
        return seconds
    raise ConfigError(
        f"the length of a ban is {value!r}: expected a period such as '1h', seconds above 0, "
        "at most ten years, or 'forever' (in Python: None)"
    )


def check_text(name: str, value: object) -> str:
    """Return a text that is not too long, and can be written in UTF-8."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ConfigError(f"{name}={value!r:.80}: expected a str of at most {_MAX_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:  # such as bytes of a command line that are not UTF-8
        raise ConfigError(
            f"{name}={value!r:.80}: expected text that can be written in UTF-8"
        ) from None
    return value

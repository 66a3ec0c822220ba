"""Checks of the arguments of a Limiter. Each returns the value, or raises a ConfigError."""

from __future__ import annotations

import math
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.parsing import parse_period
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Storage

FOREVER: Final = 10 * 365 * 86_400.0
"""`retry_after` of a permanent ban, in seconds; also the longest ban that ends."""
_MAX_TEXT: Final = 500


def check_storage(storage: object) -> Storage:
    """Return the storage; another object would let every update fail."""
    if isinstance(storage, Storage):
        return storage
    kind = storage if isinstance(storage, type) else type(storage)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name.startswith("redis."):
        fix = "pass RedisStorage(client)"
    elif kind is storage:
        fix = f"pass an instance, for example {kind.__name__}(...)"
    else:
        fix = (
            "pass RedisStorage(client) or MemoryStorage(); a custom storage derives from "
            "bot_ratelimit.storage.base.Storage"
        )
    what = "the class" if kind is storage else "a"
    raise ConfigError(f"storage is {what} {name}, which is not a storage: {fix}")


def check_timeout(value: object) -> float:
    """Return the time-out in seconds."""
    seconds = _number(value)
    if seconds is None or not 0 < seconds <= 3600:
        raise ConfigError(
            f"timeout={value!r}: expected seconds above 0, at most 3600, for example 0.25"
        )
    return seconds


def check_wait(timeout: object) -> float:
    """Return how long a caller waits, in seconds; infinity for None."""
    if timeout is None:
        return math.inf
    seconds = _number(timeout)
    if seconds is None or not 0 <= seconds < math.inf:
        raise ConfigError(
            f"timeout={timeout!r}: expected seconds from 0 up, or None to wait as long as it takes"
        )
    return seconds


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
        part = getattr(subject, name)
        if part is not None and (isinstance(part, bool) or not isinstance(part, int)):
            raise ConfigError(
                f"{name}={part!r}: expected an id, a whole number, for example Subject(user=42)"
            )
    return subject


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
    try:
        seconds = parse_period(value) if isinstance(value, str) else _number(value)
    except ConfigError:
        seconds = None
    if seconds is None or not 0 < seconds <= FOREVER:
        raise ConfigError(
            f"the length of a ban is {value!r}: expected a period such as '1h', seconds above 0, "
            "at most ten years, or 'forever' (in Python: None)"
        )
    return seconds


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


def check_page(offset: object, limit: object) -> tuple[int, int]:
    """Return the numbers of a page."""
    return check_whole("offset", offset, 0), check_whole("limit", limit, 1, 1_000)


def check_whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number within its bounds."""
    if type(value) is int and least <= value <= (most or math.inf):
        return value
    bounds = f"from {least} up" if most is None else f"from {least} to {most}"
    raise ConfigError(f"{name}={value!r}: expected a whole number {bounds}")


def check_flag(name: str, value: object) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: expected True or False")
    return value


def _number(value: object) -> float | None:
    """The number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf

"""What an error of Redis means: an outage, or a fault that somebody must mend."""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions

from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError

SCRIPTS_REFUSED: Final = re.compile(
    r"(unknown command|no permissions to run).*\beval", re.IGNORECASE | re.DOTALL
)

_BY_CLASS: Final[dict[type[Exception], str]] = {
    exceptions.BusyLoadingError: "LOADING",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
}
_OUTAGES: Final = frozenset(
    {"LOADING", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"}
    | {"BUSY", "UNKILLABLE", "MISCONF", "NOREPLICAS"}
)
_FIXES: Final = {
    "WRONGTYPE": "something else is stored under this key: choose another key_prefix, or delete it",
    "NOPERM": "the Redis user lacks a permission: ACL SETUSER <user> ~<prefix>:ratelimit:* "
    "+@read +@write +@scripting +@transaction +time",
    "DB": "choose a lower REDIS_DB, or path of the URL: a server has 16 databases, 0 to 15, unless "
    "configured otherwise (CONFIG GET databases)",
    "CROSSSLOT": "keys decided together must live in one slot: put a hash tag into key_prefix, "
    "for example '{bot}'",
}


def translated(error: Exception) -> RateLimitError:
    """The error in this package's words: StorageError for an outage, ConfigError for a fault."""
    if isinstance(error, RateLimitError):
        return error
    text = str(error)
    if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
        return StorageError(f"{text} (check REDIS_PASSWORD, or the password in REDIS_URL)")
    code = _BY_CLASS.get(type(error)) or _code_in(text)
    if code in _OUTAGES:
        return StorageError(text if code in text else f"{code} {text}")
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)):
        return StorageError(f"{type(error).__name__}: {text}")
    if isinstance(error, exceptions.RedisClusterException):
        if "same" not in text:  # no node can be reached, or none has the slot
            return StorageError(text)
        code = "CROSSSLOT"
    fix = _FIXES.get(code, "the server cannot decide; see the error it gives")
    return ConfigError(f"{text if code in text else f'{code} {text}'} - {fix}")


def _code_in(text: str) -> str:
    """The code that an error begins with; inside a script, Redis 6 puts other text before it."""
    if "executing the script can't" in text:  # how Redis 7 words NOPERM there
        return "NOPERM"
    if "DB index is out of range" in text:
        return "DB"
    match = re.search(r"(?:^|[-\s])([A-Z]{3,})\b", text)
    return match[1] if match else ""

"""What an error of Redis means: an outage, or a fault that somebody must mend."""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions

from bot_ratelimit.errors import ConfigError, NotConnectedError, RateLimitError, StorageError

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
    "CROSSSLOT": "keys decided together must live in one slot: put a hash tag into key_prefix, "
    "for example '{bot}'",
}


def translated(error: Exception) -> RateLimitError:
    """The error in this package's words: StorageError for an outage, ConfigError for a fault."""
    if isinstance(error, RateLimitError):
        return error
    text = str(error)
    if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
        return StorageError(
            f"{text} (check REDIS_PASSWORD, or the password in REDIS_URL)", kind="auth"
        )
    code = _BY_CLASS.get(type(error)) or _code_in(text)
    if code in _OUTAGES:
        return StorageError(text if code in text else f"{code} {text}", kind=code.lower())
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
    match = re.search(r"(?:^|[-\s])([A-Z]{3,})\b", text)
    return match[1] if match else ""


# What the reason of a failure to connect contains, its kind, and what to do about it.
_REASONS: Final = (
    (
        r"WRONG_VERSION_NUMBER|record layer failure|unknown protocol",
        "tls",
        "the port does not speak TLS: use redis:// instead of rediss://",
    ),
    (r"certificate|CERTIFICATE|SSL", "tls", "check ssl_ca_certs and the server's certificate"),
    (
        r"[Aa]uthentication|WRONGPASS|NOAUTH|invalid (username-)?password",
        "auth",
        "check REDIS_PASSWORD, or the password in REDIS_URL",
    ),
    (r"refused", "refused", "nothing listens there: is Redis running, are host and port right?"),
    (
        r"Name or service not known|nodename nor servname|getaddrinfo|Temporary failure in name",
        "dns",
        "the host name is unknown: check REDIS_HOST or REDIS_URL",
    ),
    (r"max number of clients", "maxclients", "raise maxclients on the server"),
    (r"unreachable|No route", "unreachable", "check the network"),
)


def unreachable(name: str, error: Exception, timeout: float | None) -> StorageError:
    """Why a server cannot be reached, with its name, the real reason, and what to do.

    Args:
        name: The server.
        error: What was raised.
        timeout: Seconds that connecting was given; None if the connection was open already.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    make = StorageError if timeout is None else NotConnectedError
    if isinstance(error, (TimeoutError, exceptions.TimeoutError)) and timeout is not None:
        return make(f"no connection to {name} within {timeout:g} s", kind="timeout")
    where = "" if name in text else f"{name}: "
    for pattern, kind, fix in _REASONS:
        if re.search(pattern, text):
            return make(f"{where}{text} ({fix})", kind=kind)
    code = _BY_CLASS.get(type(error)) or _code_in(text)
    if code in _OUTAGES:
        return make(f"{where}{text if code in text else f'{code} {text}'}", kind=code.lower())
    if timeout is not None and "closed" in text:
        text += " (while connecting: if the port speaks TLS, use rediss:// instead of redis://)"
    return make(f"{where}{text}", kind="connection")

"""Translates errors of Redis: an outage, or a fault of the configuration, with the fix."""

from __future__ import annotations

import os
import re
from typing import Final

from redis import exceptions

from bot_ratelimit.errors import ConfigError, NotConnectedError, RateLimitError, StorageError

SCRIPTS_REFUSED: Final = re.compile(
    r"(unknown command|no permissions to run).*\beval", re.IGNORECASE | re.DOTALL
)

ALLOW_SCRIPTS: Final = "allow EVALSHA and EVAL (ACL SETUSER <user> +@scripting)"
"""How to allow scripts on a server."""

_BY_CLASS: Final[dict[type[Exception], str]] = {
    exceptions.BusyLoadingError: "LOADING",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
    exceptions.NoScriptError: "NOSCRIPT",
}
_OUTAGES: Final = frozenset(
    {"LOADING", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"}
    | {"BUSY", "UNKILLABLE", "MISCONF", "NOREPLICAS"}
)
_GRANT: Final = (
    "the Redis user lacks a permission: ACL SETUSER <user> ~<prefix>:ratelimit:* "
    "+@connection +select +@read +@write +@scripting +@transaction +time"
)
_FIXES: Final = {
    "WRONGTYPE": "a key of the rate limiter holds data of another program: choose another "
    "key_prefix, or delete the key",
    "NOPERM": _GRANT,
    "DB": "choose a lower REDIS_DB, or a lower number in REDIS_URL: a server has databases 0 to 15 "
    "unless configured otherwise (CONFIG GET databases)",
    "CROSSSLOT": "keys that are decided together must be in one slot: put a hash tag into "
    "key_prefix, for example '{bot}'",
}
# A node of a Redis Cluster says "max number of clients + cluster connections reached".
_FULL, _MORE_CLIENTS = "max number of clients", "raise maxclients on the server"


class ServerText(Exception):  # noqa: N818 - not raised: it carries an error's text to `translated`
    """An error that the script met in one hit, in the server's words."""


def translated(error: Exception, where: str = "") -> Exception:
    """Translate an error: StorageError for an outage, ConfigError for a fault of the configuration.

    Only errors of Redis, of the network and of this package are translated. Any other error is a
    bug and is returned unchanged, with its name and its traceback.

    Args:
        error: What the server replied, or what was raised.
        where: The server, named at the start of the text.
    """
    if isinstance(error, RateLimitError) or not isinstance(error, _EXPLAINED):
        return error
    text = one_line(error)
    at = f"{where}: " if where and where not in text else ""
    auth = (exceptions.AuthenticationError, exceptions.AuthorizationError)
    if isinstance(error, auth) or "unauthenticated" in text:  # how Redis words a large command
        return StorageError(
            f"{at}{text} - check the user name and the password (REDIS_PASSWORD, or in REDIS_URL)",
            kind="auth",
        )
    if _FULL in text:
        return StorageError(f"{at}{text} - {_MORE_CLIENTS}", kind="maxclients")
    code = code_of(error)
    if code in _OUTAGES:
        return StorageError(f"{at}{text if code in text else f'{code} {text}'}", kind=code.lower())
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError, EOFError)):
        return StorageError(f"{at}{type(error).__name__}: {text}")
    if isinstance(error, exceptions.RedisClusterException):
        if "same" not in text:  # no node can be reached, or none has the slot
            return StorageError(f"{at}{text}")
        code = "CROSSSLOT"
    fix = _FIXES.get(code, "the server cannot decide; see the error it gives")
    fault = ConfigError(f"{at}{text if code in text else f'{code} {text}'} - {fix}")
    fault.kind = code.lower() or fault.kind
    return fault


def code_of(error: Exception) -> str:
    """The code of an error reply, such as `READONLY`; empty if it has none."""
    return _BY_CLASS.get(type(error)) or _code_in(one_line(error))


def _code_in(text: str) -> str:
    """The code at the start of an error text; inside a script, Redis 6 puts text before it."""
    if "not an integer" in text or "would overflow" in text:  # INCR's error for foreign data
        return "WRONGTYPE"
    if "executing the script can't" in text:  # how Redis 7 words NOPERM there
        return "NOPERM"
    if "DB index is out of range" in text:
        return "DB"
    match = re.search(r"(?:^|[-\s])([A-Z]{3,})\b", text)
    return match[1] if match else ""


_EXPLAINED: Final = (
    *(exceptions.RedisError, exceptions.RedisClusterException),
    *(OSError, EOFError, ServerText),
)

# What the text of a connection error contains, the kind of the error, and its fix.
_REASONS: Final = (
    (
        "WRONG_VERSION_NUMBER|record layer failure|unknown protocol",
        "tls",
        "the port does not speak TLS: use redis:// instead of rediss://",
    ),
    (
        "(?i:certificate|ssl)",
        "tls",
        "check the server's certificate and ssl_ca_certs, ssl_certfile and ssl_keyfile",
    ),
    (
        "(?i:authenticat|password)|WRONGPASS|NOAUTH",
        "auth",
        "check the user name and the password ({password})",
    ),
    ("no permissions to run", "noperm", _GRANT),  # of SELECT, while connecting
    ("refused", "refused", "check that Redis is running, and its host and port"),
    (
        "not known|getaddrinfo|name resolution|No address associated",
        "dns",
        "unknown host name: check REDIS_HOST or REDIS_URL",
    ),
    ("DB index", "database", "choose a lower REDIS_DB, or a lower number in REDIS_URL"),
    (re.escape(_FULL), "maxclients", _MORE_CLIENTS),
    ("(?i:unreachable|no route)", "unreachable", "check the network"),
    (
        "connecting to /.*No such file",
        "refused",
        "check that Redis is running, and the path of its socket",
    ),
    ("No such file", "tls", "check the paths in ssl_ca_certs, ssl_certfile and ssl_keyfile"),
)
_ERRNO: Final = re.compile(r"^Error (\d+) connecting to ")
_CUT_SHORT: Final = re.compile("(?i:closed|reset|broken pipe|connection lost)")
_TLS_OR_NOT: Final = "if the port speaks TLS, use rediss:// instead of redis://"


def unreachable(
    name: str,
    error: Exception,
    timeout: float | None,
    password: str = "REDIS_PASSWORD, or in REDIS_URL",  # noqa: S107 - where one is set
) -> StorageError:
    """Explain why a server is unreachable or was lost: its name, the real reason, and the fix.

    Args:
        name: The server.
        error: The exception.
        timeout: Seconds that were allowed for connecting; None if the connection was already open.
        password: Where the password is set.
    """
    if isinstance(error, StorageError):
        return error
    text = one_line(error).rstrip(".") or type(error).__name__
    bug = None if isinstance(error, _EXPLAINED) else error
    if bug is not None:
        text = f"{type(bug).__name__}: {text}"
    if timeout is not None and isinstance(error, (TimeoutError, exceptions.TimeoutError)):
        return NotConnectedError(
            f"no connection to {name} within {timeout:g} s - check host, port and firewalls; "
            "either both sides speak TLS (rediss://) or neither (redis://)",
            kind="timeout",
        )
    if "HELLO must be called" in text:
        text = "NOAUTH the server wants a password"
    if (number := _ERRNO.match(text)) and "SSL" not in text:
        # asyncio puts other words in place of the system's
        text = f"{os.strerror(int(number[1]))} ({text})"
    text = text if name in text else f"{name}: {text}"
    kind, fix = next(
        (
            (kind, f" - {fix.format(password=password)}")
            for pattern, kind, fix in _REASONS
            if re.search(pattern, text)
        ),
        ("connection", ""),
    )
    code = code_of(error)
    if code in _OUTAGES:
        kind, text = code.lower(), text if code in text else f"{text} ({code})"
    elif timeout is not None and not fix and _CUT_SHORT.search(text):
        fix = f" - while connecting: {_TLS_OR_NOT}"
    make = StorageError if timeout is None else NotConnectedError
    made = make(f"{text}{fix}", kind=kind)
    made.bug = bug
    return made


def is_cut_short(error: Exception) -> bool:
    """Whether an open connection broke; False if none could be opened."""
    return _CUT_SHORT.search(str(error)) is not None and code_of(error) not in _OUTAGES


def one_line(error: object) -> str:
    """The text of an error on one line, without control characters and without a user's key."""
    text, *_ = str(error).partition(", with args beginning with:")
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))

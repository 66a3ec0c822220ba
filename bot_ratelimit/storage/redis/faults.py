"""What the errors of Redis mean: an outage, or a fault of the configuration; and the fix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from redis import exceptions

from bot_ratelimit.errors import ConfigError, NotConnectedError, StorageError

ALLOW_SCRIPTS: Final = "allow EVALSHA and EVAL (ACL SETUSER <user> +@scripting)"
"""How to allow scripts on a server."""
SCRIPTS_REFUSED: Final = re.compile(
    r"(unknown command|no permissions to run).*\beval", re.IGNORECASE | re.DOTALL
)

# redis-py removes the code of these errors from their text.
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
_NO_PASSWORD: Final = re.compile("Authentication required|HELLO must be called")
"""Of one class with wrong passwords, whose code is another. The second is the answer to HELLO."""
_PASSWORD: Final = "REDIS_PASSWORD, or in REDIS_URL"  # noqa: S105 - where one is set
_GRANT: Final = (
    "the Redis user lacks a permission: ACL SETUSER <user> ~<prefix>:ratelimit:* "
    "+@connection +select +@read +@write +@scripting +@transaction +time"
)


class ServerText(exceptions.ResponseError):
    """An error that the script met in one hit, in the server's words."""


class _Fault(NamedTuple):
    """What a text contains, the kind of its error, and the fix."""

    pattern: str
    kind: str
    fix: str = ""
    is_outage: bool = True
    """Otherwise the server refuses until a setting is changed."""


# A node of a Redis Cluster says "max number of clients + cluster connections reached".
_FULL: Final = _Fault("max number of clients", "maxclients", "raise maxclients on the server")
_LOWER_DB: Final = "choose a lower REDIS_DB, or a lower number in REDIS_URL"
_OUTAGES: Final = tuple(
    _Fault(rf"(?:^|[-\s]){code}\b", code.lower())
    for code in (
        *("LOADING", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
        *("BUSY", "UNKILLABLE", "MISCONF", "NOREPLICAS"),
    )
)
_AUTH: Final = _Fault(
    # The second is what Redis says to a large command, the third what it says to HELLO.
    "(?i:authenticat|password)|WRONGPASS|NOAUTH|unauthenticated|HELLO must be called",
    "auth",
    "check the user name and the password ({password})",
)

# What a server replies to a command. Redis 6 puts text before an error inside a script.
_REPLIES: Final = (
    _AUTH,
    _FULL,
    *_OUTAGES,
    _Fault(
        "WRONGTYPE|not an integer|would overflow",  # the last two are INCR's errors
        "wrongtype",
        "a key of the rate limiter holds data of another program: choose another key_prefix, or "
        "delete the key",
        is_outage=False,
    ),
    _Fault("NOPERM|executing the script can't", "noperm", _GRANT, is_outage=False),
    _Fault(
        "DB index is out of range",
        "db",
        f"{_LOWER_DB}: a server has databases 0 to 15 unless configured otherwise (CONFIG GET "
        "databases)",
        is_outage=False,
    ),
    _Fault(
        "CROSSSLOT",
        "crossslot",
        "keys that are decided together must be in one slot: put a hash tag into key_prefix, for "
        "example '{bot}'",
        is_outage=False,
    ),
)
# Why there is no connection.
_CONNECTING: Final = (
    _Fault(
        "WRONG_VERSION_NUMBER|record layer failure|unknown protocol",
        "tls",
        "the port does not speak TLS: use redis:// instead of rediss://",
    ),
    _Fault(
        "self[- ]signed|unable to get (local )?issuer",
        "tls",
        "this machine does not trust who signed the server's certificate: set REDIS_TLS_CA "
        "(?ssl_ca_certs= in a URL) to the file of that authority, which hosted services offer",
    ),
    _Fault(
        "(?i:mismatch.*certificate|certificate is not valid for)",
        "tls",
        "the server's certificate is for another name: connect to a name that is in it",
    ),
    _Fault(
        "(?i:certificate|ssl)",
        "tls",
        "check the server's certificate and REDIS_TLS_CA, REDIS_TLS_CERT and REDIS_TLS_KEY "
        "(ssl_ca_certs, ssl_certfile and ssl_keyfile)",
    ),
    _AUTH,
    *_OUTAGES,
    _Fault("NOPERM|no permissions to run", "noperm", _GRANT),  # of SELECT
    _Fault("refused", "refused", "check that Redis is running, and its host and port"),
    _Fault(
        "not known|getaddrinfo|name resolution|No address associated",
        "dns",
        "unknown host name: check REDIS_HOST or REDIS_URL",
    ),
    _Fault("DB index", "database", _LOWER_DB),
    _FULL,
    _Fault("(?i:unreachable|no route)", "unreachable", "check the network"),
    _Fault(
        "connecting to /.*No such file",
        "refused",
        "check that Redis is running, and the path of its socket",
    ),
    _Fault(
        "No such file",
        "tls",
        "check the paths in REDIS_TLS_CA, REDIS_TLS_CERT and REDIS_TLS_KEY (ssl_ca_certs, …)",
    ),
)
_EXPLAINED: Final = (exceptions.RedisError, OSError, EOFError)
_ERRNO: Final = re.compile(r"^Error (\d+) connecting to ")
_CUT_SHORT: Final = re.compile("(?i:closed|reset|broken pipe|connection lost)")
_TLS_OR_NOT: Final = "while connecting: if the port speaks TLS, use rediss:// instead of redis://"


def translated(error: Exception, where: str = "") -> Exception:
    """Translate an error reply: StorageError for an outage, ConfigError for anything else.

    Any other error is a bug and is returned unchanged, with its name and its traceback.

    Args:
        error: What the server replied.
        where: The server, named at the start of the text.
    """
    if not isinstance(error, exceptions.ResponseError):
        return error
    text = _text(error)
    unknown = _Fault("", code_of(error).lower() or "config", is_outage=False)
    fault = _first(_REPLIES, text) or unknown
    fix = fault.fix.format(password=_PASSWORD) if fault is _AUTH else fault.fix
    if not fix and not fault.is_outage:
        fix = "the server cannot decide; see the error it gives"
    text = f"{where}: {text}" if where and where not in text else text
    text = f"{text} - {fix}" if fix else text
    if fault.is_outage:
        return StorageError(text, kind=fault.kind)
    made = ConfigError(text)
    made.kind = fault.kind
    return made


def unreachable(
    name: str, error: Exception, timeout: float | None, password: str = _PASSWORD
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
    if timeout is not None and isinstance(error, (TimeoutError, exceptions.TimeoutError)):
        return NotConnectedError(
            f"no connection to {name} within {timeout:g} s - check host, port and firewalls; "
            "either both sides speak TLS (rediss://) or neither (redis://)",
            kind="timeout",
        )
    text = _text(error).rstrip(".") or type(error).__name__
    bug = None if isinstance(error, _EXPLAINED) else error
    if bug is not None:
        text = f"{type(bug).__name__}: {text}"
    if (number := _ERRNO.match(text)) and "SSL" not in text:
        # asyncio puts other words in place of the system's
        text = f"{os.strerror(int(number[1]))} ({text})"
    text = text if name in text else f"{name}: {text}"
    fault = _first(_CONNECTING, text)
    fix = "" if fault is None else fault.fix
    if fault is _AUTH:
        fix = fix.format(password=password)
    if fault is None and timeout is not None and _CUT_SHORT.search(text):
        fix = _TLS_OR_NOT
    make = StorageError if timeout is None else NotConnectedError
    made = make(f"{text} - {fix}" if fix else text, kind=fault.kind if fault else "connection")
    made.bug = bug
    return made


def code_of(error: Exception) -> str:
    """The code of an error reply, such as `READONLY`; empty if it has none."""
    match = re.match(r"([A-Z]{3,})\b", _text(error))
    return match[1] if match else ""


def is_cut_short(error: Exception) -> bool:
    """Whether an open connection broke; False if none could be opened."""
    text = _text(error)
    return _CUT_SHORT.search(text) is not None and _first(_OUTAGES, text) is None


def one_line(error: object) -> str:
    """The text of an error on one line, without control characters and without a user's key."""
    text, *_ = str(error).partition(", with args beginning with:")
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def _text(error: Exception) -> str:
    """The text with its code, unless that is `ERR`, which says nothing."""
    text, code = one_line(error).removeprefix("ERR "), _BY_CLASS.get(type(error), "")
    if isinstance(error, exceptions.AuthenticationError) and _NO_PASSWORD.search(text):
        code = "NOAUTH"
    return text if code in text else f"{code} {text}"


def _first(faults: Iterable[_Fault], text: str) -> _Fault | None:
    return next((fault for fault in faults if re.search(fault.pattern, text)), None)

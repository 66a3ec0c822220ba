"""What the errors of Redis mean: an outage, or a fault of the configuration; and the fix."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from redis import exceptions

from bot_ratelimit.errors import ConfigError, NotConnectedError, StorageError

ALLOW_SCRIPTS: Final = "allow EVALSHA and EVAL (ACL SETUSER <user> +@scripting)"
"""How to allow scripts on a server."""
SCRIPTS_REFUSED: Final = re.compile(
    r"(unknown command|no permissions to run).*\beval", re.IGNORECASE | re.DOTALL
)

# redis-py removes the code of these errors from their text; a `SocketWire` does not.
_BY_CLASS: Final[dict[type[Exception], str]] = {
    exceptions.BusyLoadingError: "LOADING",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.NoScriptError: "NOSCRIPT",
}
_PASSWORD: Final = "REDIS_PASSWORD, or in REDIS_URL"  # noqa: S105 - where one is set
_GRANT: Final = (
    "the Redis user lacks a permission: ACL SETUSER <user> ~<prefix>:ratelimit:* "
    "+@connection +select +@read +@write +@scripting +@transaction +time"
)
_FULL: Final = (
    "the server's memory is full: raise maxmemory, or set maxmemory-policy to volatile-ttl"
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


# In the order in which they are looked for: the first ones may name a key, which may contain
# anything. Redis 6 puts text before an error inside a script.
_FAULTS: Final = (
    _Fault(
        "WRONGTYPE|not an integer|would overflow",  # the last two are INCR's errors
        "wrongtype",
        "a key of the rate limiter holds data of another program: choose another key_prefix, or "
        "delete the key",
        is_outage=False,
    ),
    _Fault(
        "NOPERM|executing the script can't|no permissions to", "noperm", _GRANT, is_outage=False
    ),
    _Fault(
        "CROSSSLOT",
        "crossslot",
        "keys that are decided together must be in one slot: put a hash tag into key_prefix, for "
        "example '{bot}'",
        is_outage=False,
    ),
    _Fault(
        "DB index",
        "db",
        "choose a lower REDIS_DB, or a lower number in REDIS_URL: a server has databases 0 to 15 "
        "unless configured otherwise (CONFIG GET databases)",
        is_outage=False,
    ),
    *(
        _Fault(rf"(?:^|[-\s]){code}\b", code.lower(), _FULL if code == "OOM" else "")
        for code in (
            *("LOADING", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
            *("BUSY", "UNKILLABLE", "MISCONF", "NOREPLICAS"),
        )
    ),
    # A node of a Redis Cluster says "max number of clients + cluster connections reached".
    _Fault("max number of clients", "maxclients", "raise maxclients on the server"),
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
    _Fault(
        # The second is what Redis says to a large command, the third what it says to HELLO.
        "(?i:authenticat|password)|WRONGPASS|NOAUTH|unauthenticated|HELLO must be called",
        "auth",
        "check the user name and the password ({password})",
    ),
    _Fault("No such master", "connection", "check the service name given to master_for"),
    _Fault("refused", "refused", "check that Redis is running, and its host and port"),
    _Fault(
        "not known|getaddrinfo|name resolution|No address associated",
        "dns",
        "unknown host name: check REDIS_HOST or REDIS_URL",
    ),
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
_NO_PASSWORD: Final = re.compile("Authentication required|HELLO must be called")
_EXPLAINED: Final = (exceptions.RedisError, OSError, EOFError)
_ERRNO: Final = re.compile(r"^Error (\d+) connecting to ")
_CUT_SHORT: Final = re.compile("(?i:closed|reset|broken pipe|connection lost)")
_WHY_CUT_SHORT: Final = (
    "while connecting: if the port speaks TLS, use rediss:// instead of redis://; if the server "
    "has too many clients, raise maxclients on the server"
)


def translated(error: Exception, where: str = "") -> Exception:
    """Translate an error reply: StorageError for an outage, ConfigError for anything else.

    Any other error is a bug and is returned unchanged, with its name and its traceback.
    """
    if not isinstance(error, exceptions.ResponseError):
        return error
    text = _text(error)
    unknown = _Fault(
        "",
        code_of(error).lower() or "config",
        "the server cannot decide; see the error it gives",
        is_outage=False,
    )
    fault = _fault_in(text) or unknown
    fix = fault.fix.replace("{password}", _PASSWORD)
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

    `timeout` is for connecting, None for an open connection; `password` says where one is set.
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
    fault = _fault_in(text)
    fix = "" if fault is None else fault.fix.replace("{password}", password)
    if fault is None and timeout is not None and _CUT_SHORT.search(text):
        fix = _WHY_CUT_SHORT
    make = StorageError if timeout is None else NotConnectedError
    made = make(f"{text} - {fix}" if fix else text, kind=fault.kind if fault else "connection")
    made.bug = bug
    return made


def code_of(error: Exception) -> str:
    """The code of an error reply, such as `READONLY`; empty if it has none."""
    match = re.match(r"([A-Z]{3,})\b", _text(error))
    return match[1] if match else ""


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


def _fault_in(text: str) -> _Fault | None:
    return next((fault for fault in _FAULTS if re.search(fault.pattern, text)), None)

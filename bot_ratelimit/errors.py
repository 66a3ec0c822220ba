"""The errors of this package. A refusal is not an error but a `Decision`."""

from __future__ import annotations


class RateLimitError(Exception):
    """The base class of every error that this package raises.

    ::

        try:
            await limiter.reset("5/10s", Subject(user=42))
        except RateLimitError as error:
            print(error)
    """


class ConfigError(RateLimitError, ValueError):
    """A wrong setting or argument; the message names it, its value and the fix.

    It is a `ValueError` too. For example, `Limit.parse("5 minutes")` raises::

        '5 minutes': expected AMOUNT/PERIOD, for example '5/minute' or '5/10s sliding', ...

    Attributes:
        kind: A word for logs and statistics: the code of a Redis error in lower case, such as
            `"noperm"`, otherwise `"config"`.
    """

    kind: str = "config"


class StorageError(RateLimitError):
    """The storage could not answer: out of reach, too slow, or unable to serve now.

    Whether the hit was charged is unknown, so it is never repeated. `Limiter.hit` and the
    middleware never raise it: `on_error` answers instead. Calls that change something raise it::

        try:
            await limiter.ban(Subject(user=42), "1h")
        except StorageError as error:
            print(f"not banned: {error}")

    Args:
        message: What happened, to which server.
        kind: In a word, for statistics: `"timeout"`, `"refused"`, `"connection"`, `"dns"`,
            `"auth"`, `"tls"`, `"closed"`, `"queue_full"`, `"not_connected"`, or the code of a
            Redis error in lower case, such as `"loading"`.
    """

    bug: Exception | None = None
    """What failed, if it was neither Redis nor the network; the log has its traceback."""

    kind: str = "unavailable"

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind or self.kind


class NotConnectedError(StorageError):
    """There is no connection to the server at the moment; nothing was sent or charged."""

    kind = "not_connected"


class QueueFullError(StorageError):
    """Too many decisions wait for the server already; nothing was sent or charged.

    The server may well be alive, so this does not count as an outage.
    """

    kind = "queue_full"


class NotSentError(RateLimitError):
    """A request to Telegram was not sent.

    It had to wait for its turn, which `without_waiting` forbids, or the bot is shutting down::

        try:
            with without_waiting():
                await bot.send_message(chat, "Did you know?")
        except NotSentError:
            pass
    """


class SendQueueFullError(RateLimitError):
    """A request to Telegram was not sent: too many wait already.

    The bounds are `max_waiting` requests for one chat, 1,000 unless given, and for requests that
    find others in their chat ten times as many in the process::

        try:
            await bot.send_message(chat, text)
        except SendQueueFullError as error:
            log.warning("dropped: %s", error)
    """


def printable(text: str) -> str:
    """Escape a text so that it stays on one log line: a key may contain text written by a user."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

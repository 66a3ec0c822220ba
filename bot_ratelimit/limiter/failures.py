"""Failures: a circuit breaker for each server, and the log messages about failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from cachetools import TTLCache

from bot_ratelimit.errors import ConfigError, NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.limiter.breaker import Breaker
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.rules.rule import Rule
from bot_ratelimit.storage.base import Count

log = logging.getLogger("bot_ratelimit")

# The same message is logged once in this many seconds, not for every update.
LOG_EVERY: Final = 60.0

_NOT_CONNECTED: Final = "not connected"
_CONSEQUENCES: Final = {
    "allow": "updates are handled without a limit (on_error='allow')",
    "deny": "updates are refused (on_error='deny')",
    "memory": "each instance limits by its own counts (on_error='memory')",
}


class Failures:
    """Keeps a circuit breaker for each server, and logs changes instead of every failed update.

    Args:
        on_error: The policy; log messages say what it means.
        clock: Returns seconds from any starting point.
        server_of: Returns the server that decides about these charges now; see `Storage.server`.
        observer: Is told of failures and outages too.
    """

    def __init__(
        self,
        on_error: str,
        clock: Callable[[], float],
        server_of: Callable[[Sequence[Count]], str],
        observer: Observer | None = None,
    ) -> None:
        self._consequence = _CONSEQUENCES[on_error]
        self._clock = clock
        self._breakers: dict[str, Breaker] = {}
        self._server_of = server_of
        self._observer = observer
        # The failures that were logged: since when, and which charges could not be decided.
        self._failing: dict[str, tuple[float, Sequence[Count]]] = {}
        self._outages: dict[str, tuple[float, str]] = {}  # since when, and the last reason
        self._undecidable: dict[str, str] = {}  # why a server cannot decide without a script
        self._logged: TTLCache[str, bool] = TTLCache(64, LOG_EVERY, timer=clock)

    def breaker(self, server: str) -> Breaker:
        """The breaker of a server."""
        breaker = self._breakers.get(server)
        if breaker is None:
            breaker = self._breakers[server] = Breaker()
        return breaker

    def succeeded(self, server: str, breaker: Breaker, ticket: int) -> None:
        """Report that the server answered."""
        if breaker.succeeded(ticket) and (self._failing or self._outages):
            self._recovered(server)

    def failed(
        self,
        server: str,
        breaker: Breaker,
        ticket: int,
        error: StorageError,
        charges: Sequence[Count] = (),
    ) -> None:
        """Report that the server did not answer, or said that it cannot serve now."""
        reason = printable(str(error).rstrip("."))
        if self._observer is not None:
            self._observer.storage_failed(server, error.kind)
        if isinstance(error, QueueFullError):
            breaker.abandoned(ticket)
            if self.should_log("queue full"):
                log.warning(
                    "Too many decisions at once: %s. For these, %s", reason, self._consequence
                )
            return
        now = self._clock()
        failure = (now, charges)
        if isinstance(error, NotConnectedError):
            breaker.abandoned(ticket)
            self._begin_outage(server, error.kind, reason, now)
            self._log_failure(
                server,
                failure,
                f"{_NOT_CONNECTED} {error.kind}",
                logging.ERROR,
                (
                    "Redis rate limit check failed: %s. The bot tries to connect about every "
                    "second; until then, %s"
                ),
                reason,
                self._consequence,
                bug=error.bug,
            )
        elif breaker.failed(ticket, now):
            if self._observer is not None:
                self._observer.breaker_changed(server, True)
            self._begin_outage(server, error.kind, reason, now)
            self._log_failure(
                server,
                failure,
                "",
                logging.ERROR,
                (
                    "Redis rate limit check failed: %s. Redis is not asked for %.1f s and then "
                    "tried now and then; until it answers, %s"
                ),
                reason,
                breaker.wait(now),
                self._consequence,
                bug=error.bug,
            )
        elif breaker.closed:
            self._log_failure(
                server,
                failure,
                f"outage {error.kind}",
                logging.WARNING,
                ("Redis rate limit check failed: %s. Without an answer, %s"),
                reason,
                self._consequence,
                bug=error.bug,
            )
        else:  # a failed probe
            self._begin_outage(server, error.kind, reason, now)

    def rejected(self, server: str, breaker: Breaker, ticket: int, error: Exception) -> None:
        """Report an error reply that is not an outage: asking less often would not help."""
        breaker.succeeded(ticket)  # this does not mean that limits work again
        expected = isinstance(error, ConfigError)
        kind = getattr(error, "kind", type(error).__name__)
        if self._observer is not None:
            self._observer.storage_failed(server, kind)
        if kind == "noscript":
            self._undecidable[server] = printable(str(error))
        if kind == ConfigError.kind:  # no Redis error code: only the text identifies the error
            kind = str(error)[:200]
        if self.should_log(f"{server} fault {kind}"):
            log.error(
                "Redis rate limit check failed: %s. Until that is fixed, %s",
                printable(str(error) if expected else repr(error)),
                self._consequence,
                exc_info=None if expected else error,
            )

    def would_have_refused(self, rules: Sequence[Rule]) -> None:
        """Log the shadow rules that would have refused a hit."""
        for rule in rules:
            if self.should_log(f"shadow {rule}"):
                log.info("The shadow rule '%s' would have refused a hit", rule)

    def should_log(self, what: str) -> bool:
        """Whether this message has not been logged for a minute, so that it may be logged now."""
        if what in self._logged:
            return False
        self._logged[what] = True
        return True

    def outage(self, server: str) -> tuple[float, str] | None:
        """Seconds since a server became unreachable, and the reason; None if it is reachable."""
        if server not in self._outages:
            return None
        since, reason = self._outages[server]
        return self._clock() - since, reason

    def undecidable(self, server: str) -> str:
        """What a server that refused scripts was asked and could not decide; nothing if it could.

        That lasts for as long as the server refuses them, which its connection knows.
        """
        return self._undecidable.get(server, "")

    def breakers(self) -> dict[str, Breaker]:
        """The breakers of all servers that were asked so far."""
        return dict(self._breakers)

    def _begin_outage(self, server: str, kind: str, reason: str, now: float) -> None:
        """Start an outage; a single late answer is not one."""
        since = self._outages.get(server, (None, ""))[0]
        self._outages[server] = (now if since is None else since, reason)
        if since is None and self._observer is not None:
            self._observer.outage_began(server, kind)

    def _recovered(self, server: str) -> None:
        """Log that the server answers, also if it replaces a server that failed.

        In a cluster another node may have taken over, and the failed one is never asked again.
        """
        now = self._clock()
        for name, (since, charges) in list(self._failing.items()):
            if name != server and not (charges and self._server_of(charges) == server):
                continue
            del self._failing[name]
            self._forget_logged(f"{name} {_NOT_CONNECTED} ")  # the next outage has its own line
            log.warning(
                "Redis answers again after %.1f s: limits hold on every instance (%s)",
                now - since,
                server if name == server else f"{server}, asked instead of {name}",
            )
            if name != server:
                self._end_outage(name, now)
                self._breakers.pop(name, None)
        self._end_outage(server, now)

    def _forget_logged(self, beginning: str) -> None:
        for what in [each for each in self._logged if each.startswith(beginning)]:
            self._logged.pop(what, None)

    def _end_outage(self, server: str, now: float) -> None:
        """End the outage of a server, if there is one."""
        if server not in self._outages:
            return
        since, _ = self._outages.pop(server)
        if self._observer is not None:
            self._observer.breaker_changed(server, False)
            self._observer.outage_ended(server, now - since)

    def _log_failure(
        self,
        server: str,
        failure: tuple[float, Sequence[Count]],
        kind: str,
        level: int,
        text: str,
        *arguments: object,
        bug: Exception | None,
    ) -> None:
        if kind and not self.should_log(f"{server} {kind}"):
            return
        self._failing.setdefault(server, failure)
        log.log(level, text, *arguments, exc_info=bug)


def printable(text: str) -> str:
    """Escape a text so that it stays on one log line: a key may contain text written by a user."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

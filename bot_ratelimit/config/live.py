"""Live limits: each instance reads the changes by operators, and reports which version it uses.

| key | |
| --- | --- |
| `<prefix>:ratelimit:live` | the document, see `Overrides` |
| `<prefix>:ratelimit:history` | the last 20 documents, the latest first |
| `<prefix>:ratelimit:audit` | the last 200 actions of operators, the latest first |
| `<prefix>:ratelimit:instances` | a field for each instance, renewed every 2 s, gone after 30 s |
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, Final

from bot_ratelimit.config.overrides import Overrides, applied
from bot_ratelimit.errors import ConfigError, StorageError, printable
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.rule import Rules
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.documents import Documents
from bot_ratelimit.storage.loops import Seldom, Ticker

log = logging.getLogger("bot_ratelimit")

EVERY: Final = 2.0
"""Seconds between two reads of the document, plus or minus a quarter."""

REPORTED_FOR: Final = 30
"""Seconds for which the report of an instance is valid."""

HISTORY: Final = 20
"""How many documents are kept for roll back."""

_numbers: Final = count(1)


def live_key(prefix: str, name: str) -> str:
    """The key of a document, for example `bot:ratelimit:live`."""
    return f"{prefix}:ratelimit:{name}"


def instance_name() -> str:
    """A name for what reports to operators: host, process, and a number."""
    return f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"


class Live:
    """The rules that apply now on this instance.

    A document that is invalid, of a newer version of the package, or missing changes nothing: the
    last valid one stays in force, and a missing one is written again.

    Args:
        limiter: Its storage keeps the document.
        inventory: Returns what this instance reports about its rules, as JSON values.
        used: Called with each new document.
        clock: Returns seconds from any starting point.
    """

    def __init__(
        self,
        limiter: Limiter,
        *,
        inventory: Callable[[], dict[str, Any]] = dict,
        used: Callable[[Overrides], None] = lambda overrides: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.overrides = Overrides()
        """The changes that apply now."""
        self.rejected = 0
        """How many documents were invalid, or of a newer version."""
        self.instance = instance_name()
        self._prefix = limiter.key_prefix
        self._timeout = limiter.timeout
        self._observer = limiter.observer
        self._documents: Documents = limiter.storage.documents()
        self._inventory, self._used, self._clock = inventory, used, clock
        self._seen: bytes | None = None  # the last document, valid or not
        self._last_good: bytes | None = None
        self._off_until = 0.0  # by the clock of this process
        # By identity, together with the rules themselves, so that the id is not reused for other
        # rules.
        self._applied: dict[int, tuple[Rules, Rules]] = {}
        self._ticker = Ticker(self._tick, EVERY, jitter=0.25, ended=self._ended)
        self._read_error = ""  # why the document cannot be read
        self._rejection = ""  # why the document is not applied
        self._seldom = Seldom(clock=clock)
        # The last inventory, its time, and its overrides: making it takes longer than everything
        # else.
        self._listed: tuple[Overrides | None, float, dict[str, Any]] = (None, 0.0, {})
        self.is_ready = False
        """Whether the document has been read, or a read was attempted, since the start."""

    def applied(self, rules: Rules) -> Rules | None:
        """Return the rules that apply in place of these now; None while all limits are off."""
        if self._off_until and self._clock() < self._off_until:
            return None
        found = self._applied.get(id(rules))
        if found is None:
            found = self._applied[id(rules)] = (rules, self._apply(rules))
        return found[1]

    @property
    def problem(self) -> str:
        """Why the document cannot be read or applied now; empty if it can."""
        return self._read_error or self._rejection

    @property
    def all_off(self) -> bool:
        """Whether all limits are off now."""
        return self._clock() < self._off_until

    def start(self) -> None:
        """Start to poll the document in the background."""
        self._ticker.start(at_once=True)

    async def begin(self) -> None:
        """Start, and wait for the first read, but no longer than a decision may take.

        It has no argument, because aiogram would give it what the bot keeps under that name.
        """
        await self.begin_within(Deadline(self._timeout))

    async def begin_within(self, deadline: Deadline) -> None:
        """The same within what is left for an update."""
        self.start()
        began = time.monotonic()
        is_read = await self._ticker.first(deadline.left())
        deadline.waited(began, answered=is_read and not self._read_error)
        self.is_ready = True

    async def stop(self) -> None:
        """Stop polling, and remove the report of this instance."""
        if await self._ticker.stop():
            with suppress(StorageError, ConfigError):
                await self._documents.forget(live_key(self._prefix, "instances"), self.instance)

    async def refresh(self) -> None:
        """Read the document now; errors are never raised, and logged except those of an outage."""
        try:
            found = await self._documents.read(live_key(self._prefix, "live"))
            if found is None and self._last_good is not None:
                await self._restore(self._last_good)
            elif found is not None and found != self._seen:
                self._take(found)
            if self._rejection and self._last_good is None:
                await self._use_history()
            await self._report()
        except Exception as error:
            self._note_read_error(error)
        else:
            self._read_error = ""
            self._seldom.forget()

    async def _tick(self) -> bool:
        await self.refresh()
        self.is_ready = True
        return True

    def _ended(self) -> None:
        """The next update starts to poll again."""
        self.is_ready = False

    def _take(self, document: bytes) -> None:
        self._seen = document
        try:
            self._use(document)
        except ConfigError as error:
            self.rejected += 1
            self._rejection = printable(str(error))
            self._log_unchanged("is not applied", self._rejection)

    def _use(self, document: bytes) -> None:
        # A wrong document raises here, and changes that cannot be applied, before a change is made.
        overrides = Overrides.from_json(document)
        again = {
            key: (rules, applied(rules, overrides)) for key, (rules, _) in self._applied.items()
        }
        before, self.overrides = self.overrides, overrides
        self._applied, self._last_good, self._off_until = again, document, 0.0
        self._rejection = ""
        if overrides.version < before.version:
            log.warning(
                "The live limits start over: version %d follows %d",
                overrides.version,
                before.version,
            )
        self._observer.configured(overrides.version)
        what, by = printable(overrides.what), printable(overrides.by)
        log.info("Live limits: version %d (%s, by %s)", overrides.version, what, by)
        self._used(overrides)

    def _apply(self, rules: Rules) -> Rules:
        try:
            return applied(rules, self.overrides)
        except ConfigError as error:  # a handler that was discovered only now
            self._log_unchanged("is only partly applied", printable(str(error)))
            return rules

    async def _use_history(self) -> None:
        """Use the newest valid version of the history, as the other instances do.

        For an instance that was started while the document is invalid.
        """
        rejection = self._rejection
        for document in await self._documents.listed(live_key(self._prefix, "history")):
            with suppress(ConfigError):
                self._use(document)
                self._rejection = rejection
                return

    async def _restore(self, document: bytes) -> None:
        """Write the document back that is gone."""
        if self._seen is not None:
            self._seen = None
            log.warning(
                "The live limits are gone from Redis: version %d stays in force and is "
                "written back; use `bot-ratelimit rollback 0` to remove them",
                self.overrides.version,
            )
        if await self._documents.swap(live_key(self._prefix, "live"), None, document):
            self._seen = document
            history = live_key(self._prefix, "history")
            if document not in await self._documents.listed(history):  # it was emptied as well
                await self._documents.push(history, document, HISTORY)

    async def _report(self) -> None:
        now = self._clock()
        if self._listed[0] is not self.overrides or now - self._listed[1] >= REPORTED_FOR:
            self._listed = self.overrides, now, self._inventory()
        told = {
            "version": self.overrides.version,
            "rejected": self.rejected,
            "problem": self._rejection,  # the document has just been read
            **self._listed[2],
        }
        server_now = await self._documents.report(
            live_key(self._prefix, "instances"),
            self.instance,
            json.dumps(told, ensure_ascii=False).encode(),
            REPORTED_FOR,
        )
        left = self.overrides.off_until - server_now
        self._off_until = self._clock() + left if left > 0 else 0.0

    def _note_read_error(self, error: Exception) -> None:
        is_known = isinstance(error, (StorageError, ConfigError))
        if isinstance(error, ConfigError) and not self._read_error:
            self.rejected += 1
        self._read_error = printable(str(error) if is_known else repr(error))
        if isinstance(error, StorageError):  # decisions report it
            return
        if self._seldom(str(is_known)):  # not at every read
            bug = None if is_known else error
            self._log_unchanged("cannot be read", self._read_error, bug)

    def _log_unchanged(self, what: str, reason: str, bug: Exception | None = None) -> None:
        log.error(
            "The live document %s: %s. Version %d stays in force",
            what,
            reason.rstrip("."),
            self.overrides.version,
            exc_info=bug,
        )

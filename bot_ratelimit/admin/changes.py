"""Changes: operators change limits while the bot runs, and can undo it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from bot_ratelimit.admin.views import Entry, RollbackPreview, RuleView
from bot_ratelimit.admin.wording import differences
from bot_ratelimit.config.live import EVERY, HISTORY, live_key
from bot_ratelimit.config.overrides import Overrides, is_penalty
from bot_ratelimit.config.tables import penalty_of
from bot_ratelimit.errors import ConfigError, RateLimitError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.checks import check_cost
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.periods import parse_period
from bot_ratelimit.storage.documents import Documents

AUDIT: Final = 200
"""How many actions the audit remembers."""

PATIENCE: Final = 1.5 * EVERY
"""Seconds in which instances write back a document that Redis has lost."""

_TRIES: Final = 5


class ConflictError(RateLimitError):
    """Somebody else has changed the live limits in the meantime; nothing was changed."""


class Audit:
    """The last 200 actions of operators."""

    def __init__(self, documents: Documents, key: str, by: str) -> None:
        self._documents, self._key, self._by = documents, key, by

    async def note(self, what: str, changed: Iterable[str] = ()) -> None:
        """Add an action, and what was different afterwards."""
        now = round(await self._documents.now(), 3)
        entry = Entry(now, self._by, what, tuple(changed))
        document = json.dumps(asdict(entry), ensure_ascii=False).encode()
        await self._documents.push(self._key, document, AUDIT)

    async def entries(self) -> tuple[Entry, ...]:
        """All of them, the latest first."""
        found = []
        for raw in await self._documents.listed(self._key):
            try:
                entry = json.loads(raw)
                found.append(Entry(**{**entry, "changed": tuple(entry["changed"])}))
            except (ValueError, LookupError, TypeError):  # of another version of this package
                continue
        return tuple(found)


class Changes:
    """Changes the live document; each change makes a new version, and ConfigError if it is invalid.

    Two operators never overwrite each other: a change applies to the newest version, or, with
    `if_version`, only to the version that the operator has seen; else it raises ConflictError.
    `known` returns the rules in force, to say what a change replaces.
    """

    def __init__(
        self,
        limiter: Limiter,
        by: str,
        audit: Audit,
        known: Callable[[], Awaitable[Sequence[RuleView]]],
        patience: float = PATIENCE,
    ) -> None:
        self.by = by
        self._live_key = live_key(limiter.key_prefix, "live")
        self._history_key = live_key(limiter.key_prefix, "history")
        self._audit, self._known = audit, known
        self._patience = 0.0 if limiter.storage.source == "memory" else patience
        self._documents = limiter.storage.documents()

    async def current(self) -> Overrides:
        """The live changes in force; ConfigError if the document is invalid."""
        return _parsed(await self._documents.read(self._live_key))

    async def in_force(self) -> tuple[Overrides, str]:
        """What the instances obey, and why that is not the document; empty if it is.

        An invalid document must not hide where users stand: the last good version is in force.
        """
        try:
            return await self.current(), ""
        except ConfigError as error:
            return next(iter(await self.history()), Overrides()), str(error)

    async def history(self) -> tuple[Overrides, ...]:
        """The documents to roll back to, the latest first."""
        found = []
        for raw in await self._documents.listed(self._history_key):
            try:
                found.append(Overrides.from_json(raw))
            except ConfigError:  # of a newer version of this package
                continue
        return tuple(found)

    async def set_rule(
        self, view: RuleView, *, if_version: int | None = None, **change: Any
    ) -> Overrides:
        """Change a rule on every instance; for what can change, see `altered`."""
        what = f"unset {view.name}"
        if not change.get("default"):
            wanted = altered(Overrides(), view, **change).rules[view.name]
            words = (
                f"{each}" if name == "limit" else f"{name}={each}" for name, each in wanted.items()
            )
            what = f"set {view.name} {' '.join(words)}"
        return await self._change(what, lambda live: altered(live, view, **change), if_version)

    async def set_penalty(
        self, after: str | None, ban: str = "15m", *, if_version: int | None = None, **options: Any
    ) -> Overrides:
        """Change or add the ban for users who keep sending; None undoes the change.

        Either way it is in force afterwards, also if operators have switched it off.
        """
        table = None if after is None else {"after": after, "ban": ban, **options}
        if table is not None:
            penalty_of(table)
        what = "penalty as configured" if table is None else f"penalty {ban} after {after}"

        def alter(live: Overrides) -> Overrides:
            rules = {name: each for name, each in live.rules.items() if not is_penalty(name)}
            return replace(live, penalty=table, rules=rules)

        return await self._change(what, alter, if_version)

    async def set_exempt(
        self, id_: int, exempt: bool, *, if_version: int | None = None
    ) -> Overrides:
        """Exempt a user or a chat from all limits, or limit them even if the bot exempts them."""

        def alter(live: Overrides) -> Overrides:
            one = frozenset({id_})
            if exempt:
                return replace(live, exempt=live.exempt | one, limited=live.limited - one)
            return replace(live, exempt=live.exempt - one, limited=live.limited | one)

        what = f"{'exempt' if exempt else 'not exempt'} {id_}"
        return await self._change(what, alter, if_version)

    async def pause(self, how_long: str, *, if_version: int | None = None) -> Overrides:
        """Switch all limits off for a while: a period such as `1h`, at most a day."""
        until = await self._documents.now() + check_pause(how_long)
        what = f"all limits off for {how_long}"
        return await self._change(
            what, lambda live: replace(live, off_until=until, off_by=self.by), if_version
        )

    async def resume(self, *, if_version: int | None = None) -> Overrides:
        """Switch all limits on again."""
        return await self._change(
            "all limits on", lambda live: replace(live, off_until=0.0, off_by=""), if_version
        )

    async def rollback(
        self, version: int | None = None, *, if_version: int | None = None
    ) -> Overrides:
        """Return to an earlier version, of the last 20; by default to the previous one.

        Version 0 has no changes. An invalid document is replaced as well.
        """
        found = await self.preview_rollback(version)
        if version is None and if_version is None and not found.is_invalid:
            if_version = found.live.version  # the previous version of the one that was read
        return await self._change(
            f"rollback to {found.target.version}",
            lambda live: replace(found.target, version=live.version),
            if_version,
            replacing_invalid=found.live.version,
        )

    async def preview_rollback(self, version: int | None = None) -> RollbackPreview:
        """What `rollback` would do; changes nothing."""
        known = {each.version: each for each in reversed(await self.history())}
        live, is_invalid = Overrides(version=max(known, default=0)), False
        try:
            live = await self.current()
        except ConfigError:
            is_invalid = True
        if version is None:
            # If the document is invalid, the last good version.
            earlier = [each for each in known if each < live.version or is_invalid]
            if not earlier and (is_invalid or live.version > 1):  # 0 could loosen limits silently
                raise ConfigError(
                    "Redis has lost the previous version: roll back to 0 to drop all live changes, "
                    "or change the limits themselves"
                )
            version = max(earlier, default=0)
        if version != 0 and version not in known:
            listed = ", ".join(map(str, sorted({0, *known})))
            raise ConfigError(f"there is no version {version} to roll back to: expected {listed}")
        now = await self._documents.now()
        target, live = (
            each if each.off_until > now else replace(each, off_until=0.0, off_by="")
            for each in (known.get(version, Overrides()), live)
        )
        return RollbackPreview(target, live, is_invalid)

    async def _change(
        self,
        what: str,
        alter: Callable[[Overrides], Overrides],
        if_version: int | None,
        *,
        replacing_invalid: int | None = None,
    ) -> Overrides:
        for _ in range(_TRIES):
            raw = await self._documents.read(self._live_key)
            if raw is None and self._patience:
                # Redis may have been emptied a moment ago: instances write back what they obey.
                await asyncio.sleep(self._patience)
                raw = await self._documents.read(self._live_key)
            try:
                before = _parsed(raw)
            except ConfigError:
                if replacing_invalid is None:
                    raise
                before = Overrides(version=replacing_invalid)
            else:
                await self._complete(raw)
            if if_version is not None and before.version != if_version:
                raise _conflict(before, if_version)
            at = round(await self._documents.now(), 3)
            version = before.version + 1
            after = replace(alter(before), version=version, at=at, by=self.by, what=what)
            document = after.to_json()
            Overrides.from_json(document)  # what cannot be read is not written
            if await self._documents.swap(self._live_key, raw, document):
                await self._documents.push(self._history_key, document, HISTORY)
                await self._audit.note(what, differences(before, after, await self._known()))
                return after
        raise ConflictError("others keep changing the live limits: try again")

    async def _complete(self, document: bytes | None) -> None:
        """Add the live document to the history, if Redis went away before that was done."""
        if document and document not in await self._documents.listed(self._history_key):
            await self._documents.push(self._history_key, document, HISTORY)


def _conflict(live: Overrides, seen: int) -> ConflictError:
    if not live.version:
        return ConflictError(
            f"Redis has lost the live limits in the meantime, version {seen}; look again, and "
            "repeat it"
        )
    return ConflictError(
        f"{live.by} changed the live limits in the meantime ({live.what}): version {live.version} "
        f"follows {seen}; look again, and repeat it"
    )


def _parsed(document: bytes | None) -> Overrides:
    try:
        return Overrides() if document is None else Overrides.from_json(document)
    except ConfigError as error:
        raise ConfigError(f"{error}; a rollback replaces it with the last good version") from None


def check_pause(how_long: str) -> float:
    """The seconds for which all limits are to be off, a day at most."""
    seconds = parse_period(how_long)
    if not 1 <= seconds <= 86_400:
        raise ConfigError(f"{how_long!r}: limits can be off for 1 s at least and a day at most")
    return seconds


def altered(
    live: Overrides,
    view: RuleView,
    limit: str | None = None,
    *,
    shadow: bool | None = None,
    off: bool | None = None,
    default: bool = False,
) -> Overrides:
    """The live changes, with a change of one rule; for what can change, see `fields.Limit`.

    Raises:
        ConfigError: The change makes no sense for the rule, or there is nothing to change.
    """
    name, given = view.name, {"limit": limit, "shadow": shadow, "off": off}
    wanted = {what: value for what, value in given.items() if value is not None}
    if default:
        if wanted:
            raise ConfigError("default undoes all changes of the rule: give nothing else")
        if name not in live.rules:
            raise ConfigError(f"{name!r} has no live changes")
        return replace(live, rules={n: each for n, each in live.rules.items() if n != name})
    if view.ban_ms and (limit, shadow) != (None, None):
        raise ConfigError(f"{name!r} is a penalty: change it with `penalty`, or switch it off")
    if limit is not None:
        wanted["limit"] = str(Limit.parse(limit))
        if (rule := view.rule()) is not None:
            check_cost(view.cost, Limit.parse(limit), rule)
    elif view.is_given and view.limit is None:
        raise ConfigError(f"{name!r} has no limit of its own: give it one, such as 5/minute")
    if not wanted:
        raise ConfigError(f"no change for {name!r}: give a limit, shadow or off")
    return replace(live, rules={**live.rules, name: {**live.rules.get(name, {}), **wanted}})

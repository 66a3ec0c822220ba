"""Overrides: what operators changed while the bot runs, as a value and as a JSON document.

::

    {"format": 1, "version": 7, "at": 1763716800.25, "by": "anna@shell", "what": "set messages",
     "rules": {"messages": {"limit": "2/minute"}, "chat": {"shadow": true}, "ai": {"off": true}},
     "penalty": {"after": "10/minute", "ban": "15m"},
     "exempt": [42], "limited": [7], "off_until": 1763720400.0, "off_by": "anna@shell"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bot_ratelimit.config.tables import Change, LiveDocument, checked, penalty_of
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.decision import NO_LIMIT
from bot_ratelimit.rules.checks import check_cost
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, changed, rules_of

FORMAT: Final = 1
"""The format of the document. A document of a newer format is not understood and not applied."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """The changes to the rules of code, file and environment."""

    version: int = 0
    """The number of the change; 0 if nothing was ever changed."""
    at: float = 0.0
    """When it was changed, in Unix seconds by the clock of Redis."""
    by: str = ""
    what: str = ""
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each changed rule, by `Rule.label`: `limit` as a str, `shadow` and `off`, if changed."""
    penalty: Mapping[str, Any] | None = None
    """A penalty as in a limits file, which replaces all other penalties."""
    exempt: frozenset[int] = frozenset()
    """Ids that are also exempt."""
    limited: frozenset[int] = frozenset()
    """Ids that are not exempt, whatever the other settings say."""
    off_until: float = 0.0
    """Until when all limits are off, in Unix seconds by the clock of Redis."""
    off_by: str = ""
    """Who switched them off."""

    def __post_init__(self) -> None:
        for name, change in self.rules.items():
            _check_change(name, change)
        if self.penalty is not None:
            penalty_of(self.penalty)

    def to_json(self) -> bytes:
        """Return the document."""
        content = asdict(self)
        content.update(exempt=sorted(self.exempt), limited=sorted(self.limited), format=FORMAT)
        if not self.off_by:  # version 0.2.0 does not know this field
            del content["off_by"]
        return json.dumps(content, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, document: bytes) -> Overrides:
        """Read a document.

        Raises:
            ConfigError: It is not a valid document, or one of a newer version of this package.
        """
        try:
            content = json.loads(document)
        except ValueError:
            raise ConfigError("the live document is not JSON") from None
        if not isinstance(content, dict):
            raise ConfigError("the live document is not a JSON object")
        found = content.pop("format", None)
        if found != FORMAT:
            raise ConfigError(
                f"the live document has format {found!r}, and this version of bot_ratelimit "
                f"reads format {FORMAT}; update it"
            )
        off_by = str(content.pop("off_by", ""))
        try:
            fields = checked(LiveDocument, content).model_dump()
            fields.update(exempt=frozenset(fields["exempt"]), limited=frozenset(fields["limited"]))
            return cls(**fields, off_by=off_by)
        except ConfigError as error:
            raise ConfigError(f"the live document: {error}") from None


def is_penalty(name: str) -> bool:
    """Whether a rule of this name, see `Rule.label`, is a penalty."""
    return name.split(":")[0] == "ban"


def applied(rules: Rules, overrides: Overrides) -> Rules:
    """Return the rules with the changes; `NO_LIMIT` if all of them are off.

    Keys stay the same, so a changed limit continues the existing counts.

    Raises:
        ConfigError: A changed limit could never grant the cost of its rule.
    """
    found = [_changed(rule, overrides) for rule in rules]
    kept = [rule for rule in found if rule is not None]
    has_penalty = any(isinstance(rule, Penalty) for rule in rules)
    if overrides.penalty is not None and not has_penalty:
        added = _changed(penalty_of(overrides.penalty), overrides)
        kept += [] if added is None else [added]
    if kept == list(rules):
        return rules
    return rules_of(kept) if kept else NO_LIMIT


def changed_if_valid(rule: Rule, overrides: Overrides) -> Rule:
    """Return the rule with its change, even if it is off; unchanged if the change is invalid."""
    try:
        return _with_change(rule, overrides)
    except ConfigError:
        return rule


def _changed(rule: Rule, overrides: Overrides) -> Rule | None:
    if overrides.rules.get(rule.label, {}).get("off"):
        return None
    return _with_change(rule, overrides)


def _with_change(rule: Rule, overrides: Overrides) -> Rule:
    change = overrides.rules.get(rule.label, {})
    if isinstance(rule, Penalty):
        if overrides.penalty is None:
            return rule
        new = penalty_of(overrides.penalty)
        return changed(rule, limit=new.limit, ban_ms=new.ban_ms, longest_ms=new.longest_ms)
    fields: dict[str, Any] = {"shadow": change.get("shadow", rule.shadow)}
    if "limit" in change:
        fields["limit"] = Limit.parse(change["limit"])
        check_cost(rule.cost, fields["limit"], rule)
    return changed(rule, **fields)


def _check_change(name: str, change: object) -> None:
    try:
        found = checked(Change, change).model_dump(exclude_unset=True)
        if not found or None in found.values():
            raise ConfigError("expected at least one of limit, shadow and off")
        if "limit" in found:
            Limit.parse(found["limit"])
    except ConfigError as error:
        raise ConfigError(f"the change of {name!r}: {error}") from None
    if "limit" in found and is_penalty(name):
        raise ConfigError(f"{name!r} is a penalty: change it with `penalty`, or switch it off")

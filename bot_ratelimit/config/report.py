"""Report: what an instance tells operators about a rule in force."""

from __future__ import annotations

from typing import Any, Final

from bot_ratelimit.config.overrides import Overrides, changed_if_valid
from bot_ratelimit.config.settings import Origin
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Scope, named

EVERYWHERE: Final = "every handler"
"""Where the rules of a middleware apply."""
OTHER_BOTS: Final = "messages of other bots"
"""Where the limit of other bots applies."""


def report_of(rule: Rule, overrides: Overrides, where: str, origin: Origin) -> dict[str, Any]:
    """A rule from code, file or environment, and its live changes, as JSON.

    `where` is the handler that it limits, or `EVERYWHERE` for a middleware's.
    """
    change = overrides.rules.get(rule.label, {})
    now = changed_if_valid(rule, overrides)
    changed = bool(change) or (isinstance(rule, Penalty) and overrides.penalty is not None)
    item: dict[str, Any] = {
        "name": rule.label,
        "limit": str(now.limit) if isinstance(now.limit, Limit) else None,
        "function": None if isinstance(rule.limit, Limit) else named(rule.limit),
        "scope": rule.scope.value if isinstance(rule.scope, Scope) else None,
        "path": rule.path,
        "cost": rule.cost,
        "shadow": now.shadow,
        "off": bool(change.get("off")),
        "where": where,
        "from": "live" if changed else origin,
    }
    if changed:
        otherwise = str(rule.limit) if isinstance(rule.limit, Limit) else None
        item |= {"otherwise": otherwise, "otherwise_shadow": rule.shadow}
    if isinstance(now, Penalty):
        item |= {"ban_ms": now.ban_ms, "longest_ms": now.longest_ms}
    return item

"""Inventory: the rules in force on this instance, as operators see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiogram.dispatcher.router import Router

from bot_ratelimit.config.limits_file import penalty_of
from bot_ratelimit.config.overrides import Overrides, changed_if_valid, name_of
from bot_ratelimit.config.settings import Origin
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.functions import NO_LIMIT
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Scope, named

EVERYWHERE: Final = "every handler"
"""Where the rules of a middleware apply."""


def inventory(
    overrides: Overrides,
    rules: Iterable[Rule],
    origins: Mapping[str, Origin],
    flags: Flags,
    roots: Iterable[Router],
) -> list[dict[str, Any]]:
    """List every rule once: first those of the middleware, then those of handlers' flags.

    Args:
        overrides: What operators changed.
        rules: The middleware's rules, from code, file and environment.
        origins: Where its limits and its penalty come from.
        flags: The flags of the handlers.
        roots: The dispatchers.
    """
    found: dict[str, dict[str, Any]] = {}
    rules = [rule for rule in rules if rule is not NO_LIMIT[0]]
    for rule in rules:
        kind = "penalty" if isinstance(rule, Penalty) else "limits"
        found[name_of(rule)] = _item(rule, overrides, EVERYWHERE, origins[kind])
    if overrides.penalty is not None and not any(isinstance(rule, Penalty) for rule in rules):
        added = penalty_of(overrides.penalty)
        found[name_of(added)] = _item(added, overrides, EVERYWHERE, "live")
    for root in roots:
        for handler, own_rules, is_named in flags.by_handler(root):
            for rule in own_rules:
                item = _item(rule, overrides, handler, "file" if is_named else "code")
                found.setdefault(name_of(rule), item)
    return list(found.values())


def _item(rule: Rule, overrides: Overrides, where: str, origin: Origin) -> dict[str, Any]:
    change = overrides.rules.get(name_of(rule), {})
    now = changed_if_valid(rule, overrides)
    changed = bool(change) or (isinstance(rule, Penalty) and overrides.penalty is not None)
    item: dict[str, Any] = {
        "name": name_of(rule),
        "limit": str(now.limit) if isinstance(now.limit, Limit) else None,
        "function": None if isinstance(now.limit, Limit) else named(now.limit),
        "scope": rule.scope.value if isinstance(rule.scope, Scope) else None,
        "path": rule.path,
        "cost": rule.cost,
        "shadow": now.shadow,
        "off": bool(change.get("off")),
        "where": where,
        "from": "live" if changed else origin,
    }
    if changed and isinstance(rule.limit, Limit):
        item |= {"otherwise": str(rule.limit), "otherwise_shadow": rule.shadow}
    if isinstance(now, Penalty):
        item |= {"ban_ms": now.ban_ms, "longest_ms": now.longest_ms}
    return item

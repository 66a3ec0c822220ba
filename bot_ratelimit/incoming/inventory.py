"""Inventory: the rules in force on this instance, as operators see them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from aiogram.dispatcher.router import Router

from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.report import EVERYWHERE, OTHER_BOTS, report_of
from bot_ratelimit.config.settings import Origin
from bot_ratelimit.config.tables import penalty_of
from bot_ratelimit.incoming.arguments import BOTS_PATH
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.live_limits import LiveLimits
from bot_ratelimit.limiter.decision import NO_LIMIT
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule


def inventory(
    overrides: Overrides,
    rules: Iterable[Rule],
    origins: Mapping[str, Origin],
    flags: Flags,
    roots: Collection[Router],
    live: LiveLimits | None = None,
) -> dict[str, Any]:
    """List every rule once, and the handlers to which operators can give a limit of their own.

    The rules of the middleware come first, and then those of handlers' flags.
    """
    found: dict[str, dict[str, Any]] = {}
    rules = [rule for rule in rules if rule is not NO_LIMIT[0]]
    for rule in rules:
        where, origin = EVERYWHERE, origins["penalty" if isinstance(rule, Penalty) else "limits"]
        if rule.path == BOTS_PATH:
            where, origin = OTHER_BOTS, "code"
        found[rule.label] = report_of(rule, overrides, where, origin)
    if overrides.penalty is not None and not any(isinstance(rule, Penalty) for rule in rules):
        added = penalty_of(overrides.penalty)
        found[added.label] = report_of(added, overrides, EVERYWHERE, "live")
    for root in roots:
        for handler, own_rules, is_named in flags.by_handler(root):
            for rule in own_rules:
                item = report_of(rule, overrides, handler, origins["named"] if is_named else "code")
                found.setdefault(rule.label, item)
    names = () if live is None else [name for root in roots for name in live.names(root)]
    unlimited = set()
    for name in names:
        given = None if live is None else live.rule_of(name)
        if given is None:
            unlimited.add(name)
        else:
            item = report_of(given, overrides, name, "live") | {"is_given": True}
            found.setdefault(name, item)
    return {"rules": list(found.values()), "handlers": sorted(unlimited)[:300]}

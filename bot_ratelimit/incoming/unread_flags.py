"""Flags that look like limits and limit nothing; found when the bot starts."""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import Final

from aiogram.dispatcher.flags import FlagDecorator, extract_flags, extract_flags_from_object
from aiogram.dispatcher.router import Router

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.flags import FLAG, Flags
from bot_ratelimit.incoming.handler_names import full_name, handlers_of

log = logging.getLogger("bot_ratelimit")

_LEFT_OVER: Final = (
    *("throttling_key", "throttling", "throttle", "throttling_rate", "antiflood"),
    *("ratelimit", "rate_limits"),
)
"""Flags that hand-written throttles often use, and misspelled ones."""


def find_unread_flags(root: Router) -> str:
    """Return an error about decorators in the wrong order; empty if there are none.

    A flag above the decorator that registers the handler comes too late: aiogram has read the
    handler's flags by then.
    """
    lost = [
        full_name(handler)
        for handler in handlers_of(root)
        if FLAG in extract_flags_from_object(handler.callback)
        and FLAG not in extract_flags(handler)
    ]
    if not lost:
        return ""
    return (
        f"the rate_limit flag of {', '.join(lost)} has no effect: move @flags.rate_limit(...) "
        "below the decorator that registers the handler, such as @router.message()"
    )


def warn_of_unlimited(root: Router, kind: type, uncounted: Container[str]) -> None:
    """Log flags of handlers that no middleware of this class reads, or whose updates never count.

    An outer middleware runs before the handler is known.
    """
    for router in root.chain_tail:
        for name, observer in router.observers.items():
            flagged = [each for each in observer.handlers if extract_flags(each).get(FLAG, False)]
            above = [each.observers[name] for each in router.chain_head if name in each.observers]
            is_read = any(isinstance(each, kind) for one in above for each in one.middleware)
            why = "such updates are never counted"
            if name not in uncounted:
                why = f"write setup(dp) or dp.{name}.middleware(...), not outer_middleware(...)"
            if flagged and (name in uncounted or not is_read):
                log.warning(
                    "RateLimitMiddleware: the flag rate_limit of %s is read by no limit: %s",
                    ", ".join(map(full_name, flagged)),
                    why,
                )


def check_flags(root: Router, flags: Flags) -> None:
    """Read all flags; log those without effect, unused named limits, and names that may change.

    Raises:
        ConfigError: A flag is invalid, or comes too late, or a handler is not a function.
    """
    for handler in handlers_of(root):
        if not callable(handler.callback) or isinstance(handler.callback, FlagDecorator):
            raise ConfigError(
                f"a registered handler is {handler.callback!r}: expected a function; for a limit "
                "that a function chooses write @flags.rate_limit(limit=function)"
            )
    flags.check(root)
    if lost := find_unread_flags(root):
        raise ConfigError(lost)
    for name in _LEFT_OVER:
        found = [full_name(each) for each in handlers_of(root) if name in extract_flags(each)]
        if found:
            log.warning(
                "RateLimitMiddleware: the flag %s of %s is read by no limit of this package: "
                "write @flags.rate_limit('1/s', ...) instead, or @flags.rate_limit(key='...') and "
                "named_limits={'...': '1/s'} in the middleware",
                name,
                ", ".join(found),
            )
    keys = flags.keys(root)
    if unused := flags.limits.keys() - keys:
        log.warning(
            "RateLimitMiddleware: no flag refers to the named limits %s; the flags of this bot "
            "have the names %s",
            ", ".join(sorted(unused)),
            ", ".join(sorted(keys)) or "(there are none)",
        )
    if numbered := flags.numbered(root):
        log.warning(
            "RateLimitMiddleware: these counts of handlers are numbered in the order of "
            "registration, because the handlers share a name; give their flags a key to keep the "
            "counts when the order changes: %s",
            ", ".join(numbered),
        )

"""Hidden commands: handlers that take every message before it reaches the operators' router."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from aiogram import Router

log = logging.getLogger("bot_ratelimit")


async def warn_if_hidden(router: Router) -> None:
    """Warn at startup about a handler before this router that handles every message.

    aiogram tries a router's own handlers before those of its sub-routers, and the sub-routers in
    the order in which they were included.
    """
    for each in _before(router):
        for handler in [] if _has_filters(each) else each.message.handlers:
            if not handler.filters:
                log.warning(
                    "admin_router: %s, on %s, handles every message, so the operators' commands "
                    "do not arrive: include admin_router before it, and register such handlers "
                    "on a router, not on the Dispatcher",
                    getattr(handler.callback, "__qualname__", repr(handler.callback)),
                    each.name,
                )
                return


def _before(router: Router) -> Iterator[Router]:
    while (parent := router.parent_router) is not None:
        yield parent
        for sibling in parent.sub_routers[: parent.sub_routers.index(router)]:
            yield from sibling.chain_tail
        router = parent


def _has_filters(router: Router) -> bool:
    """Whether the router has filters of its own, as far as this version of aiogram shows them."""
    return bool(getattr(getattr(router.message, "_handler", None), "filters", None))

"""Hidden commands: who sees a message before the operators' router does."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from aiogram import Router

log = logging.getLogger("bot_ratelimit")


async def warn_if_hidden(router: Router) -> None:
    """At the start: warn where something before this router handles every message.

    aiogram asks the handlers of a router before those of the routers in it, and these in the order
    in which they were included.
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
    """Whether not every message gets to its handlers, as far as this aiogram tells."""
    return bool(getattr(getattr(router.message, "_handler", None), "filters", None))

"""Where a middleware is registered in a dispatcher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiogram import BaseMiddleware, Dispatcher, Router
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import describe_type


def check_dispatcher(dispatcher: object) -> None:
    """Raise ConfigError unless this is a Dispatcher."""
    if not isinstance(dispatcher, Dispatcher):
        raise ConfigError(
            f"setup needs the Dispatcher, not {describe_type(dispatcher)}: setup(dp) covers all "
            "its routers; for one router, register the middleware there, "
            "router.message.middleware(...)"
        )


def check_exclude(exclude: object, dispatcher: Dispatcher) -> frozenset[str]:
    """Return the names of the observers to exclude, if the dispatcher has all of them.

    Raises:
        ConfigError: It does not, or these are not names.
    """
    if not isinstance(exclude, Iterable):
        raise ConfigError(f"exclude={exclude!r}: expected names such as ['inline_query']")
    names = frozenset([exclude] if isinstance(exclude, str) else exclude)
    if unknown := sorted(names - set(dispatcher.observers), key=str):
        raise ConfigError(
            f"exclude={unknown}: the dispatcher has no such observers; "
            f"it has {', '.join(dispatcher.observers)}"
        )
    return names


def root_of(router: Router | None) -> Router | None:
    """Return the router that includes all others of the bot, which is the dispatcher."""
    if router is None:
        return None
    *_, root = router.chain_head
    return root


class First(BaseMiddleware):
    """A guard that runs before all others, whenever it is registered."""


def register_guard(middleware: BaseMiddleware, dispatcher: Dispatcher) -> None:
    """Register after the user context and before FSM, among the update's outer middlewares."""
    outer = dispatcher.update.outer_middleware
    behind = list(outer)[_index_of(middleware, list(outer), dispatcher) :]
    for each in behind:
        outer.unregister(each)
    outer.register(middleware)
    for each in behind:
        outer.register(each)


def _index_of(middleware: BaseMiddleware, registered: list[Any], dispatcher: Dispatcher) -> int:
    """The position of FSM; with `disable_fsm`, or for a `First`, the one after the user context."""
    is_first = isinstance(middleware, First)
    if dispatcher.fsm in registered and not is_first:
        return registered.index(dispatcher.fsm)
    before = (UserContextMiddleware,) if is_first else (UserContextMiddleware, First)
    found = [n for n, each in enumerate(registered, 1) if isinstance(each, before)]
    return max(found, default=0)

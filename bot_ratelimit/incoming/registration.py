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


def register_guard(middleware: BaseMiddleware, dispatcher: Dispatcher) -> None:
    """Register after the user context and before FSM, among the update's outer middlewares."""
    outer = dispatcher.update.outer_middleware
    behind = list(outer)[_index_after_context(list(outer), dispatcher) :]
    for each in behind:
        outer.unregister(each)
    outer.register(middleware)
    for each in behind:
        outer.register(each)


def _index_after_context(registered: list[Any], dispatcher: Dispatcher) -> int:
    """The position of FSM, or with `disable_fsm` the one after the user context."""
    if dispatcher.fsm in registered:
        return registered.index(dispatcher.fsm)
    context = [isinstance(each, UserContextMiddleware) for each in registered]
    return context.index(True) + 1 if any(context) else 0

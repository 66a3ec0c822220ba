"""Where a middleware stands in a dispatcher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiogram import BaseMiddleware, Dispatcher, Router
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.arguments import kind_of


def check_dispatcher(dispatcher: object) -> None:
    """Raise ConfigError unless this is a Dispatcher."""
    if not isinstance(dispatcher, Dispatcher):
        raise ConfigError(
            f"setup needs the Dispatcher, not {kind_of(dispatcher)}: setup(dp) covers all its "
            "routers; for one router, register the middleware there, router.message.middleware(...)"
        )


def check_exclude(exclude: object, dispatcher: Dispatcher) -> frozenset[str]:
    """The names of observers to leave out, if each is one of the dispatcher's.

    Raises:
        ConfigError: One is not, or these are no names.
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


def check_guard(guard: object) -> None:
    """Raise ConfigError unless this is True or False."""
    if not isinstance(guard, bool):
        raise ConfigError(f"guard={guard!r}: expected True or False")


def root_of(router: Router | None) -> Router | None:
    """The router that all others of the bot are included in, which is the dispatcher."""
    if router is None:
        return None
    *_, root = router.chain_head
    return root


def stand_guard(middleware: BaseMiddleware, dispatcher: Dispatcher) -> None:
    """Take the place behind the context and before FSM among the update's outer middlewares."""
    outer = dispatcher.update.outer_middleware
    behind = list(outer)[_behind_context(list(outer), dispatcher) :]
    for each in behind:
        outer.unregister(each)
    outer.register(middleware)
    for each in behind:
        outer.register(each)


def _behind_context(registered: list[Any], dispatcher: Dispatcher) -> int:
    """Where FSM stands; without it (`disable_fsm`), behind what finds out user and chat."""
    if dispatcher.fsm in registered:
        return registered.index(dispatcher.fsm)
    context = [isinstance(each, UserContextMiddleware) for each in registered]
    return context.index(True) + 1 if any(context) else 0

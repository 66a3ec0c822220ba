"""What the middlewares of this package remember while one update is dispatched."""

from __future__ import annotations

from typing import Any, Final

from aiogram.dispatcher.middlewares.user_context import EVENT_CONTEXT_KEY

DEADLINE: Final = "deadline"
"""The key of the time that this update may still wait for the storage, a `Deadline`."""
_NAME: Final = "_bot_ratelimit_decisions"


def dispatch_state(data: dict[str, Any]) -> dict[object, Any]:
    """Return the state of the current dispatch.

    aiogram copies the data of a dispatch on its way to the routers. Only the event context is
    passed on uncopied, also into other tasks, and aiogram makes a new one for every dispatch. So
    the state is stored there.
    """
    attributes = getattr(data.get(EVENT_CONTEXT_KEY), "__dict__", None)
    state: dict[object, Any] = {}
    return state if attributes is None else attributes.setdefault(_NAME, state)

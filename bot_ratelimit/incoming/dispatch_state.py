"""What the middlewares of this package remember while one update is dispatched."""

from __future__ import annotations

from typing import Any, Final

from aiogram.dispatcher.middlewares.user_context import EVENT_CONTEXT_KEY

DEADLINE: Final = "deadline"
"""The key of the time that this update may still wait for the storage, a `Deadline`."""
NEWEST: Final = "newest"
"""The key of the newest message, if several were collected."""
REFUSED: Final = "refused"
"""The key that is there if the event was refused, or dropped as too old."""
_NAME: Final = "_bot_ratelimit_decisions"


def dispatch_state(data: dict[str, Any]) -> dict[object, Any]:
    """Return the state of the current dispatch.

    aiogram copies the data of a dispatch on its way to the routers. Only the event context is
    passed on uncopied, also into other tasks, and aiogram makes a new one for every dispatch. So
    the state is stored there.
    """
    context = data.get(EVENT_CONTEXT_KEY)
    state: dict[object, Any] | None = getattr(context, _NAME, None)
    if state is None:
        state = {}
        if context is not None:
            object.__setattr__(context, _NAME, state)  # it is frozen
    return state

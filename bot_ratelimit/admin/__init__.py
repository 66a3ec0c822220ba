"""For operators: health and metrics, inspect, forgive, ban, and change limits at run time.

`from bot_ratelimit.admin import admin_router, admin_app` imports what each needs only then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bot_ratelimit.admin.telegram import admin_router
    from bot_ratelimit.admin.web.app import admin_app

_PUBLIC: Final = {
    "admin_app": "bot_ratelimit.admin.web.app",
    "admin_router": "bot_ratelimit.admin.telegram",
}

__all__ = ["admin_app", "admin_router"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)

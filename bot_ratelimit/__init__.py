"""Rate limits for aiogram 3 bots, shared by every instance through Redis.

A name is imported when it is first used: the command does not pay for aiogram, nor a `Limiter` for
the middleware.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bot_ratelimit.config.settings import Settings
    from bot_ratelimit.errors import (
        ConfigError,
        NotSentError,
        RateLimitError,
        SendQueueFullError,
        StorageError,
    )
    from bot_ratelimit.incoming.bound_decision import BoundDecision
    from bot_ratelimit.incoming.collect import Collect
    from bot_ratelimit.incoming.debounce import Debounce
    from bot_ratelimit.incoming.events import NEVER_REFUSED
    from bot_ratelimit.incoming.inflight import InFlight
    from bot_ratelimit.incoming.middleware import RateLimitMiddleware
    from bot_ratelimit.incoming.notices import Notices
    from bot_ratelimit.limiter.decision import Decision, RefusedError
    from bot_ratelimit.limiter.limiter import Limiter
    from bot_ratelimit.limiter.observer import LogObserver, Observer
    from bot_ratelimit.limiter.slot import Slot
    from bot_ratelimit.limiter.waiting_allowed import waiting_up_to, without_waiting
    from bot_ratelimit.outgoing.journal import Journal
    from bot_ratelimit.outgoing.limits import OutgoingLimits
    from bot_ratelimit.outgoing.progress import Progress
    from bot_ratelimit.outgoing.sent import Sent, Status
    from bot_ratelimit.rules.concurrency import Concurrency
    from bot_ratelimit.rules.limit import Algorithm, Limit
    from bot_ratelimit.rules.penalty import Penalty
    from bot_ratelimit.rules.rule import Rule, Scope, Subject
    from bot_ratelimit.storage.banlist import Ban
    from bot_ratelimit.storage.limits_storage import LimitsStorage
    from bot_ratelimit.storage.memory import MemoryStorage
    from bot_ratelimit.storage.redis.storage import RedisStorage

__version__ = "0.2.0"

__all__ = [
    "NEVER_REFUSED",
    "Algorithm",
    "Ban",
    "BoundDecision",
    "Collect",
    "Concurrency",
    "ConfigError",
    "Debounce",
    "Decision",
    "InFlight",
    "Journal",
    "Limit",
    "Limiter",
    "LimitsStorage",
    "LogObserver",
    "MemoryStorage",
    "NotSentError",
    "Notices",
    "Observer",
    "OutgoingLimits",
    "Penalty",
    "Progress",
    "RateLimitError",
    "RateLimitMiddleware",
    "RedisStorage",
    "RefusedError",
    "Rule",
    "Scope",
    "SendQueueFullError",
    "Sent",
    "Settings",
    "Slot",
    "Status",
    "StorageError",
    "Subject",
    "waiting_up_to",
    "without_waiting",
]

_MODULES: Final = {
    "Settings": "bot_ratelimit.config.settings",
    "ConfigError": "bot_ratelimit.errors",
    "NotSentError": "bot_ratelimit.errors",
    "RateLimitError": "bot_ratelimit.errors",
    "SendQueueFullError": "bot_ratelimit.errors",
    "StorageError": "bot_ratelimit.errors",
    "BoundDecision": "bot_ratelimit.incoming.bound_decision",
    "Collect": "bot_ratelimit.incoming.collect",
    "Debounce": "bot_ratelimit.incoming.debounce",
    "NEVER_REFUSED": "bot_ratelimit.incoming.events",
    "InFlight": "bot_ratelimit.incoming.inflight",
    "RateLimitMiddleware": "bot_ratelimit.incoming.middleware",
    "Notices": "bot_ratelimit.incoming.notices",
    "Decision": "bot_ratelimit.limiter.decision",
    "RefusedError": "bot_ratelimit.limiter.decision",
    "Limiter": "bot_ratelimit.limiter.limiter",
    "LogObserver": "bot_ratelimit.limiter.observer",
    "Observer": "bot_ratelimit.limiter.observer",
    "Slot": "bot_ratelimit.limiter.slots",
    "waiting_up_to": "bot_ratelimit.limiter.waiting_allowed",
    "without_waiting": "bot_ratelimit.limiter.waiting_allowed",
    "Journal": "bot_ratelimit.outgoing.journal",
    "OutgoingLimits": "bot_ratelimit.outgoing.limits",
    "Progress": "bot_ratelimit.outgoing.progress",
    "Sent": "bot_ratelimit.outgoing.sent",
    "Status": "bot_ratelimit.outgoing.sent",
    "Concurrency": "bot_ratelimit.rules.concurrency",
    "Algorithm": "bot_ratelimit.rules.limit",
    "Limit": "bot_ratelimit.rules.limit",
    "Penalty": "bot_ratelimit.rules.penalty",
    "Rule": "bot_ratelimit.rules.rule",
    "Scope": "bot_ratelimit.rules.rule",
    "Subject": "bot_ratelimit.rules.rule",
    "Ban": "bot_ratelimit.storage.banlist",
    "LimitsStorage": "bot_ratelimit.storage.limits_storage",
    "MemoryStorage": "bot_ratelimit.storage.memory",
    "RedisStorage": "bot_ratelimit.storage.redis.storage",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]

"""Rate limits for aiogram 3 bots, shared by every instance through Redis."""

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
from bot_ratelimit.limiter.slots import Slot
from bot_ratelimit.limiter.waiting_allowed import without_waiting
from bot_ratelimit.outgoing.limits import OutgoingLimits
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.limit import Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Scope, Subject
from bot_ratelimit.storage.banlist import Ban
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

__version__ = "0.1.0"

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
    "Limit",
    "Limiter",
    "LogObserver",
    "MemoryStorage",
    "NotSentError",
    "Notices",
    "Observer",
    "OutgoingLimits",
    "Penalty",
    "RateLimitError",
    "RateLimitMiddleware",
    "RedisStorage",
    "RefusedError",
    "Rule",
    "Scope",
    "SendQueueFullError",
    "Settings",
    "Slot",
    "StorageError",
    "Subject",
    "without_waiting",
]

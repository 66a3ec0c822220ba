"""The arguments of a middleware that is made from settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from bot_ratelimit.config.settings import Origin, Settings
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.arguments import implicit, storage_for
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.checks import describe_type

log = logging.getLogger("bot_ratelimit")

POLICY: Final = {
    "redis_key_prefix": "key_prefix",
    "rate_limit_on_error": "on_error",
    "rate_limit_timeout": "timeout",
}
"""Which environment setting is which argument of a Limiter."""


def arguments_from(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a middleware, with a limiter; those that are given win over the settings.

    Raises:
        ConfigError: A setting is invalid, or contradicts a limiter that is given.
    """
    if not isinstance(settings, Settings):
        raise ConfigError(f"settings is {describe_type(settings)}: expected Settings(...)")
    arguments: dict[str, Any] = {
        "rate_limit": settings.rules(),
        "exempt": settings.exempt(),
        "penalty": settings.file.penalty,
        "named_limits": settings.file.limits,
    }
    if settings.file.notices:
        arguments["on_limited"] = settings.file.notices
    if "limiter" in given:
        check_policy(settings, given["limiter"])
        return {**arguments, **given}
    arguments |= {name: getattr(settings, field) for field, name in POLICY.items()}
    arguments |= given
    of_limiter = [*POLICY.values(), "observer", "statistics"]
    limits = {name: arguments.pop(name) for name in of_limiter if name in arguments}
    memory_size = settings.rate_limit_memory_size
    if "redis_client" in given:
        storage = storage_for(arguments.pop("redis_client"), memory_size)
    else:
        if settings.redis_enabled is False:
            log.warning("RateLimitMiddleware: Redis is disabled by REDIS_ENABLED=false")
        storage = implicit(settings.storage())
    arguments["limiter"] = Limiter(storage, memory_size=memory_size, **limits)
    return arguments


def check_policy(settings: Settings, limiter: object) -> None:
    """Raise ConfigError if an environment variable contradicts the limiter."""
    for field, name in POLICY.items():
        value = getattr(settings, field)
        if field in settings.model_fields_set and value != getattr(limiter, name, value):
            raise ConfigError(
                f"{field.upper()}={value!r} and a limiter with {name}={getattr(limiter, name)!r} "
                f"are both given: unset the variable, or give it to Limiter({name}=...)"
            )


def origins_of(settings: Settings, given: Mapping[str, Any]) -> dict[str, Origin]:
    """Where the limits and the penalty come from, for operators."""
    return {
        "limits": "code" if "rate_limit" in given else settings.origin("rate_limit"),
        "penalty": "code" if "penalty" in given else "file",
        "named": "code" if "named_limits" in given else "file",
    }

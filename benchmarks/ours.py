"""bot_ratelimit as a candidate, through its public interface."""

from __future__ import annotations

from typing import ClassVar, Final

from benchmarks.candidate import LIMITS, Candidate, Setting, client
from bot_ratelimit import Limiter, MemoryStorage, RedisStorage, Subject
from bot_ratelimit.rules.rule import Rules, rules_of
from bot_ratelimit.storage.base import Storage

NAME: Final = "bot_ratelimit"

_WORDS: Final = {
    "fixed window": "{amount}/{days}d",
    "sliding window": "{amount}/{days}d sliding",
    "token bucket": "{amount}/{days}d burst {amount}",
}


def rules(setting: Setting) -> Rules:
    words = _WORDS[setting.algorithm]
    limits = (words.format(amount=amount, days=days) for amount, days in LIMITS)
    return rules_of("; ".join(list(limits)[: setting.rules]))


class PolicyAnsweredError(Exception):
    """Redis did not decide, so further results would measure the failure policy."""


class Ours(Candidate):
    name: ClassVar[str] = NAME

    def _start(
        self, setting: Setting, storage: Storage, key_prefix: str = "bench", timeout: float = 0.25
    ) -> None:
        self._rules = rules(setting)
        self._limiter = Limiter(storage, key_prefix=key_prefix, timeout=timeout)

    async def hit(self, user: int) -> bool:
        decision = await self._limiter.hit(self._rules, Subject(user=user))
        if decision.source == "policy":
            raise PolicyAnsweredError("the failure policy answered")
        return decision.allowed

    async def close(self) -> None:
        await self._limiter.close()


class OnRedis(Ours):
    async def setup(self, setting: Setting) -> None:
        self._start(setting, RedisStorage(client(setting), close_client=True))


class InMemory(Ours):
    async def setup(self, setting: Setting) -> None:
        self._start(setting, MemoryStorage(setting.users + 1))

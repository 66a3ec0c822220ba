"""A bot without statistics: operators are not told a zero that nobody has counted."""

from __future__ import annotations

from bot_ratelimit import Limiter, RateLimitMiddleware
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import checked
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.wording import ENGLISH
from bot_ratelimit.admin.words import plain
from bot_ratelimit.storage.base import Storage
from tests.incoming.support import Instance


async def test_what_is_not_counted_is_not_zero(storage: Storage) -> None:
    """Rankings and charts name statistics=True, and `show` has no number of refusals."""
    limiter = Limiter(storage, timeout=5)
    assert sum(await Instance(RateLimitMiddleware("2/h", limiter=limiter)).send(*["hi"] * 9)) == 2
    operator = Limiter(storage, timeout=5, statistics=True)
    control = Control(operator, "anna@shell")  # as `bot-ratelimit` reads the same Redis

    async def shown(name: str, **given: object) -> str:
        operation = OPERATIONS[name]
        found = await operation.act(control, checked(operation.fields, given))
        return "\n".join(map(plain, operation.sheet(ENGLISH, found).lines))

    for name in ("top", "stats", "by_hour"):
        assert "statistics=True" in await shown(name)
    assert "Refused" not in await shown("show", id=42)
    await operator.close()
    await limiter.close()

"""Type checking of code that uses the package: mypy strict and pyright basic."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from .guide.pages import DOCS, blocks, readme_bot

USE = """
from typing import Any

from aiogram import Dispatcher, Router
from aiogram.types import Message, TelegramObject
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit import (
    NEVER_REFUSED, Decision, Limit, Limiter, MemoryStorage, Notices, Penalty, RateLimitMiddleware,
    RedisStorage, Rule, Scope, Settings, Subject,
)
from bot_ratelimit.admin import admin_router
from bot_ratelimit.testing import Clock, FlakyStorage

redis = Redis.from_url("redis://localhost")
limiters: list[Limiter] = [
    Limiter(MemoryStorage(clock=Clock()), on_error="memory", timeout=1),
    Limiter(RedisStorage(redis), key_prefix="shop"),
    Limiter(FlakyStorage()),
    Limiter(Settings().storage()),
]


def is_staff(event: TelegramObject, data: dict[str, Any]) -> bool:
    return bool(data)


async def tell_later(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None: ...


def limit(subject: Subject) -> str | None:
    return "5/m" if subject.user else None


def main(dp: Dispatcher, cluster: RedisCluster) -> None:
    dp.message.middleware(RateLimitMiddleware("1/s", cluster, "{shop}"))
    dp.message.outer_middleware(RateLimitMiddleware(1.0, redis, "shop"))
    dp.callback_query.middleware(RateLimitMiddleware("1/s; 20/minute", limiter=limiters[0]))
    RateLimitMiddleware.from_settings().setup(dp, guard=True, exclude=["poll"])
    RateLimitMiddleware(
        [Rule("5/m", Scope.CHAT), Rule(limit, name="own"), Limit(5, 60)],
        on_limited=tell_later,
        exempt=is_staff,
        never_refuse=NEVER_REFUSED | {"edited_message"},
        penalty=Penalty("10/minute", ban="15m"),
    ).setup(dp)
    RateLimitMiddleware(on_limited=Notices({"en": "{seconds}"}), exempt=[42])
    RateLimitMiddleware(on_limited={"en": "{seconds}"}, per_bot=True, once_per_update=True)
    router: Router = admin_router(RateLimitMiddleware(), admins=[42], prefix="rl_")
    dp.include_router(router)


async def handler(message: Message, rate_limit: Decision | None) -> None:
    decision = await limiters[0].hit(Rule("3/day", name="export"), Subject(user=42), cost=2)
    left: int = decision.remaining
    wait: float = decision.retry_after
    if decision.allowed and (rate_limit is None or rate_limit.source != "policy"):
        await message.answer(f"{left} {wait}")
    forgotten: bool = await RateLimitMiddleware().reset(Subject(user=42, chat=-100))
    await message.answer(str(forgotten or await RateLimitMiddleware().reset(42)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_type_checkers_accept_it(checker: str, tmp_path: Path) -> None:
    """mypy strict and pyright accept the README's bot, all public names, and copied recipes."""
    if checker == "mypy" and int(version("redis").partition(".")[0]) < 8:
        pytest.skip("redis-py has types for mypy from 8 on")
    recipes = (each.text for each in blocks("python", pages=[DOCS / "recipes.md"]))
    for number, text in enumerate([USE, readme_bot().text, *recipes]):
        (tmp_path / f"program_{number}.py").write_text(text, "utf-8")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
    options = ["--pythonpath", sys.executable, "-p", tmp_path]
    if checker == "mypy":
        options = ["--strict", "--cache-dir", tmp_path / "cache", *tmp_path.glob("*.py")]
    command = [Path(sys.executable).with_name(checker), *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr

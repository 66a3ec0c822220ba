"""Type checking of code that uses the package: mypy strict and pyright basic."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from .guide.pages import DOCS, blocks, readme_bot

BIN = Path(sys.executable).parent

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


async def is_friend(event: TelegramObject, data: dict[str, Any]) -> bool:
    return bool(data)


def tell(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None: ...


async def tell_later(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None: ...


def limit(subject: Subject) -> str | None:
    return "5/m" if subject.user else None


def cluster(client: RedisCluster) -> RateLimitMiddleware:
    return RateLimitMiddleware("1/s", client, "{shop}")


def main(dp: Dispatcher) -> None:
    dp.message.middleware(RateLimitMiddleware())
    dp.message.outer_middleware(RateLimitMiddleware(1.0, redis, "shop"))
    dp.callback_query.middleware(RateLimitMiddleware("1/s; 20/minute", limiter=limiters[0]))
    RateLimitMiddleware.from_settings().setup(dp, guard=True, exclude=["poll"])
    RateLimitMiddleware(
        [Rule("5/m", Scope.CHAT), Rule(limit, name="own"), Limit(5, 60)],
        on_limited=tell,
        exempt=is_staff,
        never_refuse=NEVER_REFUSED | {"edited_message"},
        penalty=Penalty("10/minute", ban="15m"),
    ).setup(dp)
    RateLimitMiddleware(on_limited=tell_later, exempt=is_friend)
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


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The README's bot and a use of all public names, one file each."""
    for name, source in (("use", USE), ("readme", readme_bot().text)):
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
    return tmp_path


def assert_accepted(command: list[str | Path], code: Path) -> None:
    found = subprocess.run(command, cwd=code, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    int(version("redis").partition(".")[0]) < 8, reason="redis-py has types for mypy from 8 on"
)
def test_mypy_strict_accepts_it(code: Path) -> None:
    """mypy strict accepts the README's code, all public names, and recipes as they are copied."""
    for number, each in enumerate(blocks("python", pages=[DOCS / "recipes.md"])):
        (code / f"recipe_{number}.py").write_text(each.text, "utf-8")
    files = sorted(code.glob("*.py"))
    assert_accepted([BIN / "mypy", "--strict", "--cache-dir", code / "cache", *files], code)


@pytest.mark.slow
def test_pyright_accepts_it(code: Path) -> None:
    """pyright accepts the README's code and all public names, as editors do."""
    (code / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
    assert_accepted([BIN / "basedpyright", "--pythonpath", sys.executable, "-p", code], code)

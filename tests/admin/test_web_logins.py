"""Failed logins are slowed, by this very package; the operator is not locked out."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import MemoryStorage, RedisStorage
from bot_ratelimit.admin.web import requests
from bot_ratelimit.testing import Clock
from tests.benches import eventually
from tests.servers import Server
from tests.tables import table

from .web import PAGE, TOKEN, Site, Visitor, bot_on, init_data, site

pytestmark = pytest.mark.usefixtures("environment")


async def guess(visitor: Visitor, times: int, how: str, **headers: str) -> list[int]:
    """The statuses of so many wrong logins, one after the other."""
    statuses = []
    for number in range(times):
        if how == "bearer":
            shown = {"Authorization": f"Bearer wrong-wrong-wrong-{number}", **headers}
            reply = await visitor.get("api/limits", headers=shown)
        else:
            fields = {how: f"wrong-wrong-wrong-{number}"}
            reply = await visitor.ask("POST", "login", data=fields, headers=headers)
        statuses.append(reply.status)
    return statuses


async def from_everywhere(visitor: Visitor, times: int, how: str) -> list[int]:
    """The statuses of wrong logins of so many addresses behind a trusted proxy."""
    statuses = []
    for number in range(times):
        address = {"X-Forwarded-For": f"198.51.100.{number}"}
        statuses += await guess(visitor, 1, how, **address)
    return statuses


@asynccontextmanager
async def two_instances(server: Server) -> AsyncIterator[tuple[Site, Visitor, Visitor]]:
    """The first of two instances that share this Redis, and a visitor of each."""
    async with aioredis.Redis(port=server.port) as one, aioredis.Redis(port=server.port) as two:
        storages = RedisStorage(one), RedisStorage(two)
        async with (
            site(bot_on(storages[0])) as first,
            site(bot_on(storages[1])) as second,
            first.visitor() as visitor,
            second.visitor() as thief,
        ):
            yield first, visitor, thief
        for storage in storages:
            await storage.close()


@pytest.mark.parametrize("how", ["bearer", "token"])
async def test_fifty_wrong_in_a_row_are_slowed(
    how: str, client: aioredis.Redis, shared: RedisStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """After five failures even the right token gets 429 with Retry-After. Right ones cost nothing.

    The log names the address of each failed login, and no secret.
    """
    caplog.set_level(logging.DEBUG)
    async with site(bot_on(shared)) as found, found.visitor() as visitor, found.script() as script:
        replies = await asyncio.gather(*(script.get("api/health") for _ in range(100)))
        assert {reply.status for reply in replies} == {200}
        for _ in range(20):
            async with found.visitor() as operator:
                assert (await operator.log_in()).status == 200
        await client.flushall()
        assert await guess(visitor, 50, how) == [401] * 5 + [429] * 45
        reply = await (visitor.log_in() if how == "token" else script.get("api/limits"))
        assert (reply.status, visitor.cookies()) == (429, {})
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert reply.content["retry_after"] == int(reply.headers["Retry-After"])
        assert reply.headers["Content-Type"].startswith("application/problem+json")
        if how == "token":
            page = await visitor.ask("POST", "login", data={"token": "x"}, headers=PAGE)
            assert (page.status, 'name="token"' in page.text) == (429, True)
        # A signature cannot be guessed, so who has a right one is not slowed.
        assert (await visitor.log_in(init_data=init_data())).status == 200
        await visitor.log_in(init_data=init_data(7))
        ttls = {key.decode(): await client.pttl(key) async for key in client.scan_iter("*{login}*")}
        assert all(ttl > 0 for ttl in ttls.values())
        places = {key.partition("{login}:")[2].partition(":")[0] for key in ttls}
        assert places - {"from", "bearer"} == {"all", "used", "session", "telegram"}
    lines = [r.getMessage() for r in caplog.records if "a login failed" in r.getMessage()]
    said = "admin_app: a login failed, from 127.0.0.1: "
    no_admin = "this Telegram user is not an admin"
    assert lines == [f"{said}this token is wrong"] * 5 + [said + no_admin]
    assert TOKEN not in caplog.text
    assert "wrong-wrong" not in caplog.text


async def test_what_is_slowed_slows_nobody_else() -> None:
    """A stranger's link makes one or many operators' browsers send initData: only that is slowed.

    Guesses in the form do not slow a script at the same address, and vice versa. All addresses
    together have a limit too, but not those that showed the right token. A minute later all ends.
    """
    clock = Clock()
    async with (
        site(bot_on(MemoryStorage(clock=clock)), trusted_proxies=["127.0.0.1"]) as found,
        found.script() as script,
        found.visitor() as visitor,
    ):
        assert await guess(visitor, 20, "init_data") == [401] * 5 + [429] * 15
        assert await from_everywhere(visitor, 70, "init_data") == [401] * 55 + [429] * 15
        assert (await script.get("api/limits")).status == 200
        several = [guess(visitor, 5, "token") for _ in range(20)]  # at once: nothing is gained
        statuses = [status for each in await asyncio.gather(*several) for status in each]
        assert sorted(statuses) == [401] * 5 + [429] * 95
        assert (await visitor.log_in()).status == 429
        assert (await visitor.log_in(init_data=init_data())).status == 200
        assert (await script.get("api/limits")).status == 200
        assert await from_everywhere(visitor, 70, "bearer") == [401] * 55 + [429] * 15
        assert (await script.get("api/limits")).status == 200
        elsewhere = {"X-Forwarded-For": "198.51.100.99"}
        assert (await script.get("api/limits", headers=elsewhere)).status == 429
        assert (await guess(visitor, 6, "bearer"))[-1] == 429
        assert (await script.get("api/limits")).status == 429
        clock.move(60)
        assert (await script.get("api/limits", headers=elsewhere)).status == 200
        assert (await visitor.log_in()).status == 200


async def test_sessions_and_known_browsers_are_not_locked_out() -> None:
    """Guesses from the same address, or from everywhere, do not lock out the operator."""
    async with site(bot_on(MemoryStorage())) as found, found.visitor() as operator:
        await operator.log_in()
        async with found.visitor() as attacker:
            assert (await guess(attacker, 10, "token"))[-1] == 429
        assert (await operator.get("api/limits")).status == 200  # the session holds
        found.now.ahead = 13 * 3_600
        assert (await operator.get("api/limits")).status == 401
        assert (await operator.log_in()).status == 200  # the browser is known
        assert (await guess(operator, 7, "token")) == [401] * 5 + [429] * 2  # and slowed, too


@table(
    ("proxies", "forwarded", "slowed"),
    [
        ([], "203.0.113.{}", 3),
        (["10.0.0.0/8"], "203.0.113.{}", 3),
        # What a client writes stands before what the proxy adds.
        (["127.0.0.1"], "203.0.113.{}, 198.51.100.7", 3),
        (["127.0.0.1", "10.0.0.0/8"], "203.0.113.{}, 198.51.100.7, 10.0.0.3", 3),
        (["127.0.0.1"], "203.0.113.{}, nonsense", 3),
        (["127.0.0.1"], "2001:db8::{}", 3),
        (["127.0.0.1"], "::ffff:198.51.100.7", 3),
        (["127.0.0.1"], "198.51.100.7:100{}", 3),
        (["127.0.0.1"], "[2001:db8::1]:100{}", 3),
        # Otherwise one attacker would slow down all logins behind the proxy.
        (["127.0.0.1"], "198.51.100.{}", 0),
    ],
)
async def test_a_forged_address_does_not_help(
    proxies: list[str], forwarded: str, slowed: int
) -> None:
    """Only what trusted proxies wrote counts, and of IPv6 the network of 64 bits."""
    async with (
        site(bot_on(MemoryStorage()), trusted_proxies=proxies) as found,
        found.visitor() as attacker,
    ):
        statuses = []
        for number in range(8):
            headers = {"X-Forwarded-For": forwarded.format(number)}
            statuses += await guess(attacker, 1, "token", **headers)
        assert statuses == [401] * (8 - slowed) + [429] * slowed


async def test_an_outage_does_not_open_the_door(own_server: Server, own: RedisStorage) -> None:
    """Without Redis this process counts guesses, and knows the sessions that it has seen.

    Their operators see the outage. Other sessions and ended ones open nothing.
    """
    async with (
        site(bot_on(own)) as found,
        found.visitor() as visitor,
        found.visitor() as former,
        found.visitor() as thief,
        found.visitor() as stranger,
    ):
        await visitor.log_in()
        await former.log_in()
        thief.steal(former)
        assert (await former.change("POST", "logout")).status == 303
        (name,) = [each for each in visitor.cookies() if "device" not in each]
        stranger.set_cookie(name, "A" * 43)
        own_server.kill()
        assert await guess(stranger, 8, "token") == [401] * 5 + [429] * 3
        for each in (stranger, thief):
            assert (await each.get("api/health")).status == 503
        assert (await stranger.get("", headers=PAGE)).status == 200  # the login form
        assert (await visitor.get("api/health")).content["status"] == "unhealthy"
        assert (await visitor.get("api/limits")).status == 503  # the session holds
        assert (await visitor.change("POST", "logout")).status == 503  # and goes on
        assert (await visitor.log_in()).status == 503  # there is no session without Redis


async def test_in_an_outage_nobody_logs_in_from_telegram(own_server: Server) -> None:
    """Another instance may have seen this initData; the same initData is good after the outage."""
    async with two_instances(own_server) as (_, operator, thief):
        used, fresh = init_data(), init_data()
        assert (await operator.log_in(init_data=used)).status == 200
        own_server.hang()
        for data in (used, fresh):
            refused = await thief.log_in(init_data=data)
            assert (refused.status, thief.cookies()) == (503, {})
            assert "which remembers used initData, cannot be reached" in refused.text
        own_server.resume()

        async def is_let_in() -> bool:
            return (await thief.log_in(init_data=fresh)).status == 200

        await eventually(is_let_in, within=10)
        assert (await thief.log_in(init_data=used)).status == 401


async def test_sessions_end_when_redis_is_emptied(
    redis_server: Server, client: aioredis.Redis
) -> None:
    """An emptied Redis ends all sessions, on any instance.

    `clear` forgets counts of users only: who was logged out or slowed stays so.
    """
    async with two_instances(redis_server) as (first, colleague, thief):
        await colleague.log_in()
        thief.steal(colleague)
        assert (await thief.get("api/limits")).status == 200
        sessions = [key async for key in client.scan_iter("bot:ratelimit:{login}:session:*")]
        assert [43_000 < await client.ttl(key) <= 43_200 for key in sessions] == [True]
        await client.flushall()
        for each in (colleague, thief):
            assert (await each.get("api/limits")).status == 401
        assert (await colleague.log_in()).status == 200
        thief.steal(colleague)
        await colleague.change("POST", "logout")
        assert (await guess(thief, 6, "token"))[-1] == 429
        await client.set("bot:ratelimit:7", 1, ex=60)
        await first.control.clear()
        assert not await client.exists("bot:ratelimit:7")
        assert await guess(thief, 1, "token") == [429]
        assert (await thief.get("api/limits")).status == 401


async def test_a_broken_body_is_no_error_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients without access cannot fill the log with tracebacks: they get 400, 413 or 415.

    Nor can they keep requests open: they get 408.
    """
    head = (
        b"POST /ops/admin/login HTTP/1.1\r\nHost: here\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n"
    )
    bomb = gzip.compress(b"token=" + b"x" * 1_000_000)
    packed = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    monkeypatch.setattr(requests, "_SLOWEST", 0.05)
    async with site(bot_on(MemoryStorage())) as found:
        for body, status in (
            (packed % len(bomb) + bomb, b"415"),
            (packed % 7 + b"no gzip", b"415"),
            (b"Content-Encoding: identity\r\n" + packed % 7 + b"no gzip", b"415"),
            (b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", b"400"),
            (b"Content-Length: 100\r\n\r\ntoken=", b"408"),  # and no more
            (b"Content-Length: 100\r\n\r\ntoken=", b""),  # and then it goes
        ):
            reader, writer = await asyncio.open_connection(found.server.host, found.server.port)
            writer.write(head + body)
            if status:
                assert (await reader.readline()).split()[1] == status
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.05)
    ours = [record for record in caplog.records if record.name == "bot_ratelimit"]
    assert [record for record in ours if record.levelno >= logging.ERROR] == []

"""The JSON API: what it tells, what it changes, and what it refuses."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiohttp import web
from aiohttp.test_utils import TestServer

from bot_ratelimit import MemoryStorage, RedisStorage, Settings
from bot_ratelimit.admin import admin_app
from bot_ratelimit.admin.control import Control
from tests.servers import Server

from .web import (
    BEARER,
    BOT_TOKEN,
    PAGE,
    TOKEN,
    Now,
    Reply,
    Site,
    Visitor,
    bot_on,
    init_data,
    running_bot,
    site,
)

pytestmark = pytest.mark.usefixtures("environment")

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def alone() -> AsyncIterator[Visitor]:
    """A script that talks with a bot on memory, for what does not depend on a storage."""
    async with running_bot(MemoryStorage(), version=1) as found, found.script() as script:
        yield script


async def test_two_admins_do_not_overwrite_each_other(running: Site) -> None:
    """A change to a version that is outdated is 409, by body or by If-Match, and says who was."""
    async with running.visitor() as anna, running.visitor() as ben:
        await anna.log_in(init_data=init_data())
        await ben.log_in()
        sent = {"limit": "2/minute", "if_version": 1}
        both = [each.change("PATCH", "api/limits/messages", sent) for each in (anna, ben)]
        assert sorted(reply.status for reply in await asyncio.gather(*both)) == [200, 409]
        off = {"off": True}
        reply = await ben.change("PATCH", "api/limits/messages", off, **{"If-Match": '"1"'})
        assert (reply.status, reply.content["title"]) == (409, "Conflict")
        assert "version 2 follows 1; look again" in reply.content["detail"]
        several = [("If-Match", '"2"'), ("If-Match", '"1"'), ("X-CSRF-Token", ben.csrf)]
        reply = await ben.ask("PATCH", "api/limits/messages", json=off, headers=several)
        assert (reply.status, reply.content["detail"][:21]) == (400, "If-Match: expected on")
        for name, more in (("rollback", {}), ("pause", {"how_long": "1h"}), ("resume", {}),
                           ("exempt", {"id": 1}), ("penalty", {"after": "10/minute"})):  # fmt: skip
            reply = await ben.change("POST", f"api/{name}", {**more, "if_version": 1})
            assert reply.status == 409
        assert (await ben.get("api/config")).content["live"]["version"] == 2
        reply = await ben.change("PATCH", "api/limits/messages", off, **{"If-Match": '"2"'})
        assert reply.status == 200


async def test_a_rule_with_a_slash_in_its_name_can_be_changed() -> None:
    """The second limit of `1/s; 20/minute` is called 20/minute."""
    middleware = bot_on(MemoryStorage(), rules="1/s; 20/minute")
    async with site(middleware) as found, found.script() as script:
        for path in ("api/limits/20/minute", "api/limits/20%2Fminute"):
            assert (await script.change("PATCH", path, {"limit": "30/minute"})).status == 200


# --- what is wrong --------------------------------------------------------------------------


def is_problem(reply: Reply, status: int) -> bool:
    """Whether it is a problem of RFC 9457, with the same status inside."""
    return (
        reply.status == status
        and reply.headers["Content-Type"].startswith("application/problem+json")
        and reply.content["status"] == status
        and {"type", "title", "status", "detail"} <= set(reply.content)
    )


ODD_IDS = (
    *("0", "-1", "NaN", "nan", "inf", "1e3", "1.0", "0x10", "1_000", "+1", "--1", "x", "%20"),
    *("%00", "٤٢", "42%0a", "9" * 15 + "9" * 3, "9" * 400, "4503599627370497", "42;43", "*"),
    *("..%2f..", "42'--", "null", "true"),
)


async def test_an_odd_id_is_refused(alone: Visitor) -> None:
    """What is not the id of a user is 422, whatever it looks like."""
    for id_ in ODD_IDS:
        if id_ != "-1":  # a chat's
            assert is_problem(await alone.get(f"api/users/{id_}"), 422), id_
            assert is_problem(await alone.get(f"api/users/{id_}/try"), 422), id_
            assert is_problem(await alone.change("POST", f"api/users/{id_}/forgive"), 422), id_
            banned = await alone.change("PUT", f"api/bans/{id_}", {"how_long": "1h"})
            assert is_problem(banned, 422), id_
            assert is_problem(await alone.ask("DELETE", f"api/bans/{id_}"), 422), id_
            assert is_problem(await alone.get(f"api/users/42?chat={id_}"), 422), id_
        assert is_problem(await alone.get(f"api/users/42?bot={id_}"), 422), id_
        assert is_problem(await alone.get(f"api/users/42?topic={id_}"), 422), id_


PATHS = {
    422: (
        *("limits?x=1", "users/42?user=43", "users/42?chat=", "users/42/try?rule=nothing"),
        *("chats/42?user=43", "bans?offset=-1", "bans?limit=0", "bans?limit=1001"),
        *("bans?limit=NaN", "top?n=0", "top?n=1001", "statistics?hours=49", "statistics?hours=0"),
        *("by_hour?hours=99999999999999999999", "sending?hours=49", "by_minute?hours=1"),
    ),
    400: ("users/42?chat=1&chat=2",),
    404: ("nothing", "", "users/", "users/42/43"),
}


async def test_an_odd_question_is_refused(alone: Visitor) -> None:
    """Unknown and repeated parameters, numbers out of range, unknown paths."""
    for status, paths in PATHS.items():
        for path in paths:
            assert is_problem(await alone.get(f"api/{path}", headers=PAGE), status), path


NOT_JSON = (
    *("{", "[]", '"2/minute"', "\xff", "[" * 10_000),
    '{"if_version": 1%s}' % ("0" * 5_000),
)
ODD = {
    "PATCH limits/messages": (
        *('{"if_version": 1e3, "off": true}', '{"if_version": -1, "off": true}'),
        *('{"if_version": true, "off": true}', "{}", '{"limit": "5 minutes"}', '{"limit": 5}'),
        *('{"if_version": NaN, "off": true}', '{"if_version": -Infinity, "off": true}'),
        *('{"limit": null}', '{"limit": "-1/minute"}', '{"off": "yes"}', '{"off": 1}'),
        *('{"color": "red"}', '{"default": true, "off": true}', '{"default": true}'),
    ),
    "PATCH limits/nothing": ('{"off": true}',),
    "POST users/42/forgive": (
        *('{"rules": "messages"}', '{"rules": ["nothing"]}', '{"rules": [1]}', '{"user": 43}'),
        '{"chat": 1.5}',
    ),
    "PUT bans/42": (
        *("{}", '{"how_long": 3600}', '{"how_long": "a while"}', '{"how_long": "-1h"}'),
        *('{"how_long": "1h", "by": "somebody else"}', '{"how_long": "1h", "reason": "\\ud800"}'),
        '{"how_long": "1h", "reason": "%s"}' % ("x" * 501),
    ),
    "POST rollback": ('{"version": 7}',),
    "POST pause": ('{"how_long": "2d"}', '{"how_long": "0s"}', '{"how_long": "\\u0000"}'),
    "POST exempt": ('{"id": 0}', '{"id": %s}' % ("9" * 30), '{"id": [42]}', '{"id": true}'),
    "POST penalty": ('{"after": "10 minutes"}', '{"after": "10/minute", "ban": ""}'),
    "POST preview": ('{"name": "nothing", "limit": "1/s"}',),
}


async def test_an_odd_body_is_refused_and_changes_nothing(alone: Visitor) -> None:
    """Not JSON, of the wrong type, out of range, unknown: a problem that says what is wrong."""
    for request, body, status in (
        *(("PATCH limits/messages", body, 400) for body in NOT_JSON),
        *((request, body, 422) for request, bodies in ODD.items() for body in bodies),
    ):
        method, path = request.split()
        reply = await alone.raw(method, f"api/{path}", body.encode("latin-1"))
        assert is_problem(reply, status), body
        assert reply.content["detail"], body
        assert len((await alone.get("api/audit")).content) == 1, body


async def test_a_field_in_the_wrong_place_is_refused(alone: Visitor) -> None:
    """A query beside a body, or a body where a query is expected, is not silently ignored."""
    wrong: dict[str, Any] = {
        "PUT bans/42?chat=-100": {"how_long": "1h"},
        "PATCH limits/messages?if_version=0": {"limit": "1/s"},
        "POST pause?how_long=1h": {"how_long": "1h"},
        "DELETE bans/42": {"chat": -100},
    }
    for request, body in wrong.items():
        method, path = request.split()
        reply = await alone.ask(method, f"api/{path}", json=body)
        assert is_problem(reply, 422), request
        assert "there is no such field" in reply.content["detail"]
    assert len((await alone.get("api/audit")).content) == 1


async def test_each_wrong_field_is_named(alone: Visitor) -> None:
    """The problem lists the fields, so that a form can show them where they are."""
    sent = {"id": 0, "exempt": "x", "color": "red"}
    reply = await alone.change("POST", "api/exempt", sent)
    assert {each["field"] for each in reply.content["errors"]} == {"id", "exempt", "color"}
    assert "id: 0 is not the id of a user or a chat" in reply.content["detail"]
    reply = await alone.raw("POST", "api/exempt", r'{"\ud800": 1}')
    assert reply.content["detail"].startswith("a field: ")


async def test_another_type_of_content_is_refused(alone: Visitor) -> None:
    """A form of another site cannot send application/json, so nothing else is read."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = await alone.raw("POST", "api/pause", '{"how_long": "1h"}', **{"Content-Type": kind})
        assert is_problem(reply, 415)
    wrong = {"Content-Type": "application/json; charset=nothing"}
    assert (await alone.raw("POST", "api/resume", "{}", **wrong)).status in {200, 400}


async def test_a_form_with_a_csrf_token_is_not_taken_for_an_empty_body(running: Site) -> None:
    """A form to the API is 415, although its CSRF token was read: its fields are not dropped."""
    async with running.visitor() as visitor:
        await visitor.log_in()
        for path in ("api/rollback", "api/users/42/forgive"):
            sent = {"csrf": visitor.csrf, "version": "0", "rules": "messages"}
            assert is_problem(await visitor.ask("POST", path, data=sent), 415)
        assert len((await visitor.get("api/audit")).content) == 1


@pytest.mark.parametrize("root", ["/ops/admin/", "/"])
async def test_a_huge_body_is_refused(root: str) -> None:
    """413 from 16 KiB up, whatever the application around allows; for strangers 401 before that."""
    async with (
        site(bot_on(MemoryStorage()), root) as found,
        found.script() as script,
        found.visitor() as stranger,
    ):
        huge = '{"how_long": "%s"}' % ("1" * 100_000)
        assert is_problem(await script.raw("POST", "api/pause", huge), 413)
        assert (await stranger.raw("POST", "api/pause", huge)).status == 401
        reply = await stranger.ask("POST", "login", data={"token": "x" * 100_000})
        assert is_problem(reply, 413)
        assert "the body is larger than 16 KiB" in reply.text
        fields = [("token", "x")] * 5_000
        assert (await stranger.ask("POST", "login", data=fields)).status in {400, 413}

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65_536

        try:
            reply = await script.ask(
                "POST", "api/pause", data=endless(), headers={"Content-Type": "application/json"}
            )
        except OSError:
            pass  # the server has closed the connection
        else:
            assert reply.status == 413


async def test_no_answer_shows_a_secret(environment: pytest.MonkeyPatch) -> None:
    """`config` lists settings, and of secrets only that they are there."""
    environment.setenv("RATE_LIMIT_ADMIN_TOKEN", TOKEN)
    environment.setenv("REDIS_PASSWORD", "hunter2")
    settings = Settings()
    async with (
        site(bot_on(MemoryStorage()), token=None, settings=settings) as found,
        found.script() as script,
    ):
        config = await script.get("api/config")
        listed = {each["name"]: each["value"] for each in config.content["settings"]}
        assert listed["RATE_LIMIT_ADMIN_TOKEN"] == "(not shown)"
        for path in ("", "api/config", "api/health", "api/audit", "api/instances", "api/limits"):
            page = await script.get(path)
            for secret in (TOKEN, BOT_TOKEN.split(":")[1], "hunter2"):
                assert secret not in page.text


async def test_what_is_switched_off_is_said() -> None:
    """Without statistics there is no ranking: 422 with what to do."""
    middleware = bot_on(MemoryStorage(), statistics=False)
    async with site(middleware) as found, found.script() as script:
        for path in ("api/top", "api/statistics", "api/by_hour", "api/use"):
            reply = await script.get(path)
            assert is_problem(reply, 422)
            assert "statistics=True" in reply.content["detail"]


async def test_without_redis_it_is_503_and_soon(own_server: Server, own: RedisStorage) -> None:
    """Nothing hangs, whether Redis is gone or silent; the bot's own pages still answer."""
    async with running_bot(own) as found, found.script() as script:
        assert (await script.get("api/limits")).status == 200
        for stop in (own_server.hang, own_server.kill):
            stop()
            began = time.monotonic()
            paths = ("config", "limits", "users/42", "users/42/try", "bans", "top", "audit")
            for path in paths:
                reply = await script.get(f"api/{path}")
                assert is_problem(reply, 503), path
                assert reply.headers["Retry-After"] == "2"
            for method, path, sent in (
                ("PATCH", "api/limits/messages", {"off": True}),
                ("PUT", "api/bans/42", {"how_long": "1h"}),
                ("POST", "api/users/42/forgive", {}),
            ):
                assert is_problem(await script.change(method, path, sent), 503)
            health = await script.get("api/health")
            assert (health.status, health.content["ok"]) == (200, False)
            assert time.monotonic() - began < 40


async def test_a_redis_that_refuses_is_503(own_client: aioredis.Redis, own: RedisStorage) -> None:
    """The request itself is valid, so the problem has the server's own reason."""
    async with running_bot(own) as found, found.script() as script:
        await own_client.delete("bot:ratelimit:audit")
        await own_client.set("bot:ratelimit:audit", "foreign")
        reply = await script.get("api/audit")
        assert is_problem(reply, 503)
        assert "bot:ratelimit:audit" in reply.content["detail"] or "WRONGTYPE" in reply.text


async def test_a_body_that_was_read_outside_is_read_again_inside() -> None:
    """A middleware of the application around may look at bodies."""

    @web.middleware
    async def looking(request: web.Request, handler: Any) -> web.StreamResponse:
        await request.read()
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[looking])
    app.add_subapp("/admin/", admin_app(bot_on(MemoryStorage()), token=TOKEN))
    async with TestServer(app) as server:
        around = Site(server, bot_on(MemoryStorage()), Now(), "/admin/")
        async with around.script() as script:
            assert (await script.change("POST", "api/exempt", {"id": 42})).status == 200


async def test_a_bug_shows_nothing_of_itself(
    alone: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the traceback; the response has nothing of it."""

    async def broken(_: Control) -> Any:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(Control, "audit", broken)
    with caplog.at_level(logging.ERROR):
        reply = await alone.get("api/audit")
    assert is_problem(reply, 500)
    assert "secret" not in reply.text
    assert "the secret of the house" in caplog.text


async def test_bytes_that_are_not_http_reach_no_handler(alone: Visitor) -> None:
    """The server itself answers 400, and keeps working."""
    url = alone._server.make_url("/")
    with socket.create_connection((url.host, url.port)) as raw:
        raw.sendall(b"\x16\x03\x01 not http\r\n\r\n")
    assert (await alone.get("api/health")).status == 200


async def test_two_bots_in_one_process_do_not_mix() -> None:
    """Each application has its own token, sessions and bot."""
    first, second = bot_on(MemoryStorage()), bot_on(MemoryStorage(), key_prefix="other")
    async with (
        site(first, "/") as one,
        site(second, "/", token="another-token-0123456789") as two,
        one.visitor() as anna,
        two.visitor(Authorization="Bearer another-token-0123456789") as script,
    ):
        await anna.log_in()
        assert (await anna.get("api/config")).content["prefix"] == "bot"
        assert (await script.get("api/config")).content["prefix"] == "other"
        assert (await script.get("api/config", headers=BEARER)).status == 401
        async with two.visitor() as guest:
            guest.steal(anna)
            assert (await guest.get("api/config")).status == 401

"""The JSON API: what it tells, changes and refuses, as docs/admin-api.md says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import MemoryStorage, RedisStorage, Settings
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.web.api import routes
from tests.servers import Server

from .web import (
    BOT_TOKEN,
    PAGE,
    TOKEN,
    Reply,
    Site,
    Visitor,
    bot_on,
    init_data,
    running_bot,
    sending,
    site,
)

pytestmark = pytest.mark.usefixtures("environment")

DOCUMENT = (Path(__file__).parents[2] / "docs" / "admin-api.md").read_text()
EXAMPLES = re.findall(r"```text\n(.*?)\n```", DOCUMENT, re.DOTALL)


@pytest.fixture
async def alone() -> AsyncIterator[Visitor]:
    """A script that talks with a bot on memory, for what does not depend on a storage."""
    async with running_bot(MemoryStorage(), version=1) as found, found.script() as script:
        yield script


async def test_two_admins_do_not_overwrite_each_other(running: Site) -> None:
    """A change to a version that is outdated is 409, by body or by If-Match, and says who was."""
    limit, off = "api/limits/messages", {"off": True}
    async with running.visitor() as anna, running.visitor() as ben:
        await anna.log_in(init_data=init_data())
        await ben.log_in()
        sent = {"limit": "2/minute", "if_version": 1}
        both = [each.change("PATCH", limit, sent) for each in (anna, ben)]
        assert sorted(reply.status for reply in await asyncio.gather(*both)) == [200, 409]
        reply = await ben.change("PATCH", limit, off, **{"If-Match": '"1"'})
        assert (reply.status, reply.content["title"]) == (409, "Conflict")
        assert "version 2 follows 1; look again" in reply.content["detail"]
        several = [("If-Match", '"2"'), ("If-Match", '"1"'), ("X-CSRF-Token", ben.csrf)]
        reply = await ben.ask("PATCH", limit, json=off, headers=several)
        assert (reply.status, reply.content["detail"][:21]) == (400, "If-Match: expected on")
        for name, more in (("exempt", {"id": 1}), ("penalty", {"after": "10/minute"})):
            reply = await ben.change("POST", f"api/{name}", {**more, "if_version": 1})
            assert reply.status == 409
        assert (await ben.get("api/config")).content["live"]["version"] == 2
        assert (await ben.change("PATCH", limit, off, **{"If-Match": '"2"'})).status == 200


def is_problem(reply: Reply, status: int) -> bool:
    """Whether it is a problem of RFC 9457, with the same status inside."""
    return (
        reply.status == status
        and reply.headers["Content-Type"].startswith("application/problem+json")
        and reply.content["status"] == status
        and {"type", "title", "status", "detail"} <= set(reply.content)
    )


ODD_IDS = (
    *("0", "-1", "NaN", "1e3", "1.0", "0x10", "1_000", "+1", "--1", "%20", "%00", "٤٢", "42%0a"),
    *("9" * 18, "9" * 400, "4503599627370497", "42;43", "..%2f..", "42'--", "null"),
)


async def test_an_odd_id_is_refused(alone: Visitor) -> None:
    """What is not the id of a user is 422, whatever it looks like; so is an odd question."""
    bodies = {"PUT bans/{}": {"how_long": "1h"}, "POST users/{}/forgive": {}}
    users = ("GET users/{}", "GET users/{}/try", "DELETE bans/{}", "GET users/42?chat={}", *bodies)
    for id_ in ODD_IDS:
        chats = () if id_ == "-1" else users
        for request in (*chats, "GET users/42?bot={}", "GET users/42?topic={}"):
            method, path = request.split()
            reply = await alone.ask(method, f"api/{path.format(id_)}", json=bodies.get(request))
            assert is_problem(reply, 422), (request, id_)
    for status, paths in {
        422: (
            *("limits?x=1", "users/42?user=43", "users/42?chat=", "users/42/try?rule=nothing"),
            *("chats/42?user=43", "bans?offset=-1", "bans?limit=1001", "bans?limit=NaN", "top?n=0"),
            *("statistics?hours=49", "by_hour?hours=99999999999999999999", "by_minute?hours=1"),
        ),
        400: ("users/42?chat=1&chat=2",),
        404: ("nothing", "", "users/", "users/42/43"),
    }.items():
        for path in paths:
            assert is_problem(await alone.get(f"api/{path}", headers=PAGE), status), path


NOT_JSON = (
    *("{", "[]", '"2/minute"', "\xff", "[" * 10_000),
    '{"if_version": 1%s}' % ("0" * 5_000),
)
ODD = {
    "PATCH limits/messages": (
        *('{"if_version": 1e3, "off": true}', '{"if_version": true, "off": true}', "{}"),
        *('{"if_version": NaN, "off": true}', '{"if_version": -1, "off": true}', '{"off": "yes"}'),
        *('{"limit": "5 minutes"}', '{"limit": 5}', '{"limit": null}', '{"color": "red"}'),
        *('{"default": true, "off": true}', '{"default": true}'),
    ),
    "PATCH limits/nothing": ('{"off": true}',),
    "POST users/42/forgive": ('{"rules": "messages"}', '{"rules": ["nothing"]}', '{"user": 43}'),
    "PUT bans/42": (
        *("{}", '{"how_long": 3600}', '{"how_long": "a while"}', '{"how_long": "-1h"}'),
        *('{"how_long": "1h", "by": "somebody else"}', '{"how_long": "1h", "reason": "\\ud800"}'),
    ),
    "POST rollback": ('{"version": 7}',),
    "POST pause": ('{"how_long": "2d"}', '{"how_long": "\\u0000"}'),
    "POST exempt": ('{"id": %s}' % ("9" * 30), '{"id": [42]}', '{"id": true}'),
    "POST penalty": ('{"after": "10 minutes"}', '{"after": "10/minute", "ban": ""}'),
    # A query beside a body, or a body where a query is expected, is not silently ignored.
    "PUT bans/42?chat=-100": ('{"how_long": "1h"}',),
    "PATCH limits/messages?if_version=0": ('{"limit": "1/s"}',),
    "DELETE bans/42": ('{"chat": -100}',),
}


async def test_an_odd_body_is_refused_and_changes_nothing(alone: Visitor) -> None:
    """Not JSON, of the wrong type, out of range, unknown, in the wrong place: a problem.

    It says what is wrong, and lists each wrong field, so that a form can show them.
    """
    for request, body, status in (
        *(("PATCH limits/messages", body, 400) for body in NOT_JSON),
        *((request, body, 422) for request, bodies in ODD.items() for body in bodies),
    ):
        method, path = request.split()
        reply = await alone.raw(method, f"api/{path}", body.encode("latin-1"))
        assert is_problem(reply, status), body
        assert reply.content["detail"], body
    for path in ("20/minute", "20%2Fminute"):  # the second limit of `1/s; 20/minute`
        reply = await alone.change("PATCH", f"api/limits/{path}", {"off": True})
        assert "no rule is called '20/minute'" in reply.content["detail"]
    sent = {"id": 0, "exempt": "x", "color": "red"}
    reply = await alone.change("POST", "api/exempt", sent)
    assert {each["field"] for each in reply.content["errors"]} == {"id", "exempt", "color"}
    assert "id: 0 is not the id of a user or a chat" in reply.content["detail"]
    reply = await alone.raw("POST", "api/exempt", r'{"\ud800": 1}')
    assert reply.content["detail"].startswith("a field: ")
    assert len((await alone.get("api/audit")).content) == 1


@pytest.mark.parametrize("root", ["/ops/admin/", "/"])
async def test_a_huge_or_another_body_is_refused(root: str) -> None:
    """413 from 16 KiB up, whatever the application around allows; for strangers 401 before that.

    A form of another site cannot send application/json, so nothing else is read. Nor is a form
    with a CSRF token taken for an empty body: its fields are not dropped.
    """
    async with (
        site(bot_on(MemoryStorage()), root) as found,
        found.script() as script,
        found.visitor() as visitor,
    ):
        huge = '{"how_long": "%s"}' % ("1" * 100_000)
        assert is_problem(await script.raw("POST", "api/pause", huge), 413)
        assert (await visitor.raw("POST", "api/pause", huge)).status == 401
        reply = await visitor.ask("POST", "login", data={"token": "x" * 100_000})
        assert is_problem(reply, 413)
        assert "the body is larger than 16 KiB" in reply.text

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65_536

        with suppress(OSError):  # the server may have closed the connection
            assert (await script.raw("POST", "api/pause", endless())).status == 413
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            header = {"Content-Type": kind}
            sent = await script.raw("POST", "api/pause", '{"how_long": "1h"}', **header)
            assert is_problem(sent, 415)
        header = {"Content-Type": "application/json; charset=nothing"}
        assert (await script.raw("POST", "api/resume", "{", **header)).status == 400
        await visitor.log_in()
        form = {"csrf": visitor.csrf, "version": "0", "rules": "messages"}
        for path in ("api/rollback", "api/users/42/forgive"):
            assert is_problem(await visitor.ask("POST", path, data=form), 415)
        assert (await script.get("api/audit")).content == []


async def test_no_answer_shows_a_secret(environment: pytest.MonkeyPatch) -> None:
    """`config` lists settings, and of secrets only that they are there."""
    environment.setenv("RATE_LIMIT_ADMIN_TOKEN", TOKEN)
    environment.setenv("REDIS_PASSWORD", "hunter2")
    async with (
        site(bot_on(MemoryStorage()), token=None, settings=Settings()) as found,
        found.script() as script,
    ):
        config = await script.get("api/config")
        listed = {each["name"]: each["value"] for each in config.content["settings"]}
        assert listed["RATE_LIMIT_ADMIN_TOKEN"] == "(not shown)"
        for path in ("", "api/config", "api/health", "api/audit", "api/instances", "api/limits"):
            page = await script.get(path)
            for secret in (TOKEN, BOT_TOKEN.split(":")[1], "hunter2"):
                assert secret not in page.text


async def test_without_redis_it_is_503_and_soon(
    own_server: Server, own_client: aioredis.Redis, own: RedisStorage
) -> None:
    """Nothing hangs, whether Redis is gone or silent; the bot's own pages still answer.

    If Redis refuses, the problem has its reason: the request itself is valid.
    """
    changes: dict[str, dict[str, Any]] = {
        "PATCH limits/messages": {"off": True},
        "PUT bans/42": {"how_long": "1h"},
        "POST users/42/forgive": {},
    }
    paths = ("config", "limits", "users/42", "users/42/try", "bans", "top", "audit")
    async with running_bot(own) as found, found.script() as script:
        assert (await script.get("api/limits")).status == 200
        await own_client.set("bot:ratelimit:audit", "foreign")
        reply = await script.get("api/audit")
        assert is_problem(reply, 503)
        assert "bot:ratelimit:audit" in reply.content["detail"] or "WRONGTYPE" in reply.text
        for stop in (own_server.hang, own_server.kill):
            stop()
            began = time.monotonic()
            for path in paths:
                reply = await script.get(f"api/{path}")
                assert is_problem(reply, 503), path
                assert reply.headers["Retry-After"] == "2"
            for request, sent in changes.items():
                method, path = request.split()
                assert is_problem(await script.change(method, f"api/{path}", sent), 503)
            health = await script.get("api/health")
            assert (health.status, health.content["ok"]) == (200, False)
            assert time.monotonic() - began < 40


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


def shape(value: Any) -> Any:
    """Names and types of JSON, of a list those of its first element; anything instead of null."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return None if value is None else type(value).__name__


def test_every_request_is_in_the_table() -> None:
    """The table has each route of the API, and no other."""
    listed = set(re.findall(r"^\| `([A-Z]+) (api/\S+)` \|", DOCUMENT, re.MULTILINE))
    found = {(each.method, each.path[1:].replace("{name:.+}", "{name}")) for each in routes()}
    assert listed == found


async def test_the_examples_are_true(shared: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent one after the other, each is answered with the status and the fields that are shown."""
    async with (
        running_bot(shared, version=1) as found,
        found.script() as script,
        sending(shared, monkeypatch),
    ):
        await found.send(5)
        for example in sorted(EXAMPLES, key=lambda each: "color" in each):  # that one is above
            asked, _, told = example.partition("\n\n")
            first, _, body = asked.partition("\n")
            status, _, answer = told.partition("\n")
            method, path = first.split()
            reply = await script.ask(method, path, json=json.loads(body) if body else None)
            assert reply.status == int(status), first
            assert shape(reply.content) == shape(json.loads(answer.replace("\n", ""))), first

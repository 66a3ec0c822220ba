"""The JSON API: `Control` over HTTP, below `api/`. docs/admin-api.md has examples."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Handler

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.views import ConfigView
from bot_ratelimit.admin.web.console import control_of
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.validation import (
    BanBody,
    ExemptBody,
    ForgiveBody,
    HoursQuery,
    LimitBody,
    PageQuery,
    PathId,
    PauseBody,
    PenaltyBody,
    PreviewBody,
    RequestModel,
    RollbackBody,
    SubjectFields,
    TopQuery,
    TryQuery,
    UnbanQuery,
    VersionedBody,
    read_body,
    read_query,
    validated,
)
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.rules.rule import Subject

_Act: TypeAlias = Callable[[web.Request, Control], Awaitable[Any]]

_SLOWEST: Final = 20.0
"""Seconds. The very first change waits three, for instances that write a lost document back."""
_ETAG: Final = re.compile(r'"([0-9]{1,9})"', re.ASCII)


def routes() -> list[web.RouteDef]:
    """Every route below `api/`."""
    return [
        web.get("/api/config", _plain(lambda control: control.config())),
        web.get("/api/limits", _plain(lambda control: control.limits())),
        web.get("/api/use", _json(_use)),
        web.get("/api/instances", _plain(lambda control: control.instances())),
        web.get("/api/health", _plain(lambda control: control.health())),
        web.get("/api/statistics", _json(_statistics)),
        web.get("/api/by_hour", _json(_by_hour)),
        web.get("/api/top", _json(_top)),
        web.get("/api/history", _plain(lambda control: control.changes.history())),
        web.get("/api/audit", _plain(lambda control: control.audit())),
        *_about_somebody("users"),
        *_about_somebody("chats"),
        web.get("/api/bans", _json(_bans)),
        web.put("/api/bans/{id}", _json(_ban)),
        web.delete("/api/bans/{id}", _json(_unban)),
        # A rule may be called 20/minute.
        web.patch("/api/limits/{name:.+}", _json(_set)),
        web.post("/api/preview", _json(_preview)),
        web.post("/api/rollback", _json(_rollback)),
        web.post("/api/pause", _json(_pause)),
        web.post("/api/resume", _json(_resume)),
        web.post("/api/exempt", _json(_exempt)),
        web.post("/api/penalty", _json(_penalty)),
    ]


def _about_somebody(kind: str) -> list[web.RouteDef]:
    return [
        web.get(f"/api/{kind}/{{id}}", _json(_show)),
        web.get(f"/api/{kind}/{{id}}/try", _json(_try)),
        web.post(f"/api/{kind}/{{id}}/forgive", _json(_forgive)),
    ]


def _json(act: _Act) -> Handler:
    """A handler that answers with the result as JSON, or with a problem after a deadline."""

    async def handle(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_SLOWEST):
                found = await act(request, control_of(request))
        except TimeoutError:
            raise ProblemError(503, f"Redis gave no answer within {_SLOWEST:.0f} s") from None
        response = web.Response(text=to_json(found), content_type="application/json")
        live = found.live if isinstance(found, ConfigView) else found
        if isinstance(live, Overrides):
            response.headers["ETag"] = f'"{live.version}"'
        return response

    return handle


def _plain(look: Callable[[Control], Awaitable[Any]]) -> Handler:
    """A handler of requests that have no parameters."""

    async def act(request: web.Request, control: Control) -> Any:
        read_query(request, RequestModel)
        return await look(control)

    return _json(act)


# --- reading --------------------------------------------------------------------------------


async def _use(request: web.Request, control: Control) -> Any:
    return await control.use(read_query(request, HoursQuery).hours)


async def _statistics(request: web.Request, control: Control) -> Any:
    return await control.statistics(read_query(request, HoursQuery).hours)


async def _by_hour(request: web.Request, control: Control) -> Any:
    return await control.by_hour(read_query(request, HoursQuery).hours)


async def _top(request: web.Request, control: Control) -> Any:
    asked = read_query(request, TopQuery)
    return await control.top(asked.n, asked.hours)


async def _bans(request: web.Request, control: Control) -> Any:
    asked = read_query(request, PageQuery)
    return await control.bans(asked.offset, asked.limit)


# --- somebody -------------------------------------------------------------------------------


async def _show(request: web.Request, control: Control) -> Any:
    return await control.show(_subject(request, read_query(request, SubjectFields)))


async def _try(request: web.Request, control: Control) -> Any:
    asked = read_query(request, TryQuery)
    found = await control.try_(_subject(request, asked), asked.rule)
    return {"allowed": True} if found is None else found


async def _forgive(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, ForgiveBody)
    return {"forgiven": await control.forgive(_subject(request, sent), sent.rules)}


async def _ban(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, BanBody)
    return await control.ban(_banned(request, sent.chat), sent.how_long, sent.reason)


async def _unban(request: web.Request, control: Control) -> Any:
    asked = read_query(request, UnbanQuery)
    subject = _banned(request, asked.chat)._replace(bot=asked.bot)
    return {"unbanned": await control.unban(subject)}


# --- live limits ----------------------------------------------------------------------------


async def _set(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, LimitBody)
    name, seen = request.match_info["name"], _seen(request, sent)
    if not sent.default:
        return await control.set_rule(
            name, sent.limit, shadow=sent.shadow, off=sent.off, if_version=seen
        )
    if any(value is not None for value in (sent.limit, sent.shadow, sent.off)):
        raise ProblemError(422, "default undoes all changes of the rule: send no other fields")
    return await control.changes.unset_rule(name, if_version=seen)


async def _preview(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, PreviewBody)
    return await control.preview(
        sent.name, sent.limit, shadow=sent.shadow, off=sent.off, default=sent.default
    )


async def _rollback(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, RollbackBody)
    return await control.changes.rollback(sent.version, if_version=_seen(request, sent))


async def _pause(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, PauseBody)
    return await control.changes.pause(sent.how_long, if_version=_seen(request, sent))


async def _resume(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, VersionedBody)
    return await control.changes.resume(if_version=_seen(request, sent))


async def _exempt(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, ExemptBody)
    seen = _seen(request, sent)
    return await control.changes.set_exempt(sent.id, sent.exempt, if_version=seen)


async def _penalty(request: web.Request, control: Control) -> Any:
    sent = await read_body(request, PenaltyBody)
    options = {name: each for name in ("grows", "longest") if (each := getattr(sent, name))}
    return await control.changes.set_penalty(
        sent.after, sent.ban, if_version=_seen(request, sent), **options
    )


def _subject(request: web.Request, place: SubjectFields) -> Subject:
    """The subject of a path: a user in their private chat, unless another chat is given."""
    id_ = _id(request)
    if request.path.rpartition("/api/")[2].startswith("chats/"):
        if id_ > 0 or place.chat is not None:
            raise ProblemError(422, "expected the id of a group or channel, which is negative")
        return Subject(None, id_, place.topic, place.bot)
    if id_ < 0:
        raise ProblemError(422, "expected the id of a user, which is positive")
    return Subject(id_, id_ if place.chat is None else place.chat, place.topic, place.bot)


def _banned(request: web.Request, chat: int | None) -> Subject:
    """A negative id is a chat's; a user is banned everywhere, unless a chat is named."""
    id_ = _id(request)
    return Subject(chat=id_) if id_ < 0 else Subject(user=id_, chat=chat)


def _id(request: web.Request) -> int:
    return validated(PathId, {"id": request.match_info["id"]}).id


def _seen(request: web.Request, sent: VersionedBody) -> int | None:
    """The version that the operator has seen, from the body or from `If-Match`."""
    headers = request.headers.getall("If-Match", [])
    if not headers:
        return sent.if_version
    found = _ETAG.fullmatch(", ".join(headers))
    if found is None or sent.if_version is not None:
        raise ProblemError(
            400, 'If-Match: expected one version, such as "7", and no if_version in the body'
        )
    return int(found[1])

"""The JSON API: the operations over HTTP, below `api/`. docs/admin-api.md has examples."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.fields import FieldError, checked
from bot_ratelimit.admin.operations import OPERATIONS, Operation
from bot_ratelimit.admin.views import ConfigView
from bot_ratelimit.admin.web.console import control_of
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.admin.web.requests import read_body, read_query
from bot_ratelimit.config.overrides import Overrides

_SLOWEST: Final = 20.0
"""Seconds. The very first change waits three, for instances that write a lost document back."""
_ETAG: Final = re.compile(r'"([0-9]{1,9})"', re.ASCII)


def routes() -> list[web.RouteDef]:
    """Every route below `api/`."""
    found = []
    for operation in OPERATIONS.values():
        for request in operation.http:
            method, path = request.split()
            path = path.replace("{name}", "{name:.+}")  # a rule may be called 20/minute
            found.append(web.route(method, f"/{path}", _handler(operation)))
    return found


def _handler(operation: Operation) -> Callable[[web.Request], Any]:
    """Answers with the result as JSON, or with a problem after a deadline."""

    async def handle(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_SLOWEST):
                sent = checked(operation.fields, await _fields(request, operation))
                found = await operation.act(control_of(request), sent)
        except TimeoutError:
            raise ProblemError(503, f"Redis gave no answer within {_SLOWEST:.0f} s") from None
        content = to_json(operation.value(found))
        response = web.Response(text=content, content_type="application/json")
        live = found.live if isinstance(found, ConfigView) else found
        if isinstance(live, Overrides):
            response.headers["ETag"] = f'"{live.version}"'
        return response

    return handle


async def _fields(request: web.Request, operation: Operation) -> dict[str, Any]:
    """The fields of the query or body, of the path, and of `If-Match`."""
    if request.method in {"GET", "HEAD", "DELETE"}:
        found = read_query(request, operation.fields)
        unread = await read_body(request) if request.body_exists else {}
    else:
        found, unread = await read_body(request), dict(request.query)
    place = request.match_info
    if wrong := (found.keys() & place.keys()) | unread.keys():
        raise FieldError("", [{"field": min(wrong), "problem": "there is no such field"}])
    version = _seen(request, found)
    return {**found, **place, **({} if version is None else {"if_version": version})}


def _seen(request: web.Request, sent: dict[str, Any]) -> int | None:
    """The version that the operator has seen, from `If-Match`."""
    headers = request.headers.getall("If-Match", [])
    if not headers:
        return None
    found = _ETAG.fullmatch(", ".join(headers))
    if found is None or sent.get("if_version") is not None:
        raise ProblemError(
            400, 'If-Match: expected one version, such as "7", and no if_version in the body'
        )
    return int(found[1])

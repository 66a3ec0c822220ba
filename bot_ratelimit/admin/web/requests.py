"""Requests: reads bodies, queries and forms, strictly, into the fields of an operation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from multidict import MultiDict, MultiMapping

from bot_ratelimit.admin.fields import Fields, kind_of
from bot_ratelimit.admin.web.problems import ProblemError

_SLOWEST: Final = 10.0
_FORM: Final = "application/x-www-form-urlencoded"
_FLAGS: Final = {"yes": True, "true": True, "no": False, "false": False}


def from_texts(kind: type[Fields], texts: MultiMapping[str]) -> dict[str, Any]:
    """The fields that a query or form contains, converted from text; empty ones are left out.

    What people type may have spaces around it.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(texts):
        field = kind.model_fields.get(name)
        values = [each.strip() for each in texts.getall(name) if isinstance(each, str)]
        if field is not None and kind_of(field) is list:
            found[name] = [each for each in values if each]
        elif values[0]:
            is_flag = field is not None and kind_of(field) is bool
            found[name] = _FLAGS.get(values[0], values[0]) if is_flag else values[0]
    return found


def from_form(kind: type[Fields], texts: MultiMapping[str]) -> dict[str, Any]:
    """The same, and nothing else; forms say `user` and `chat` where an operation says `id`."""
    found = from_texts(kind, texts)
    if "id" not in found:
        found["id"] = found.pop("user", None) or found.pop("chat", None)
    return {name: found[name] for name in kind.model_fields if found.get(name) is not None}


def read_query(request: web.Request, kind: type[Fields]) -> dict[str, Any]:
    """The fields in the query of the URL."""
    if len(request.query) != len(set(request.query)):
        raise ProblemError(400, "a parameter is given twice")
    if any(not each or each != each.strip() for each in request.query.values()):
        raise ProblemError(422, "a parameter is empty, or has spaces around it")
    return from_texts(kind, request.query)


async def read_body(request: web.Request) -> dict[str, Any]:
    """The object in the body, parsed from JSON; empty without a body."""
    if request.content_type != "application/json":
        if request.body_exists:  # also if it was read already, for its CSRF token
            raise ProblemError(415, "expected Content-Type: application/json")
        return {}

    found = await _read(request, request.json, "JSON")
    if not isinstance(found, dict):
        raise ProblemError(400, "the body is not a JSON object")
    return found


async def read_form(request: web.Request, *, for_csrf: bool = False) -> MultiMapping[str]:
    """The fields of a form. With `for_csrf`, any other body counts as an empty form."""
    # Other charsets can encode characters that UTF-8 refuses.
    if request.content_type != _FORM or (request.charset or "utf-8").lower() != "utf-8":
        if for_csrf:
            return MultiDict()
        raise ProblemError(415, f"expected Content-Type: {_FORM}, in UTF-8")
    found: MultiMapping[str] = await _read(request, request.post, "a form")
    return found


async def _read(request: web.Request, read: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Read a body in time; 16 KiB need no compression, and a compressed body may be a bomb."""
    # Of several headers, the last one counts for aiohttp.
    if any(each != "identity" for each in request.headers.getall("Content-Encoding", [])):
        raise ProblemError(415, "expected no Content-Encoding")
    try:
        async with asyncio.timeout(_SLOWEST):
            return await read()
    except TimeoutError:
        raise ProblemError(408, "the body did not arrive in time") from None
    except (ValueError, LookupError, RecursionError):
        raise ProblemError(400, f"the body is not {what}") from None

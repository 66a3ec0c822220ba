"""Validation: what bodies, queries and forms of requests may contain."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Final, TypeVar

from aiohttp import web
from multidict import MultiDict, MultiMapping
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bot_ratelimit.admin.views import LARGEST_ID
from bot_ratelimit.admin.web.problems import ProblemError

MAX_BODY: Final = 16_384
"""Bytes. The longest body is initData, of one or two kilobytes."""

_DIGITS: Final = re.compile(r"-?[0-9]{1,17}", re.ASCII)
_SLOWEST: Final = 10.0
_FORM: Final = "application/x-www-form-urlencoded"

_Model = TypeVar("_Model", bound=BaseModel)


def _whole(value: object) -> object:
    """A whole number; in a query it is text."""
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value):
            raise ValueError("expected a whole number")
        return int(value)
    return value


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("0 is nobody's id")
    return value


Id = Annotated[
    int, BeforeValidator(_whole), Field(ge=-LARGEST_ID, le=LARGEST_ID), AfterValidator(_not_zero)
]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=LARGEST_ID)]
Number = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_000_000_000)]
Text = Annotated[str, Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=300)]


class RequestModel(BaseModel):
    """Data of a request: only these fields, each strictly of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PathId(RequestModel):
    """The id of a user or chat in a path."""

    id: Id


class SubjectFields(RequestModel):
    """Which counts of a user; by default those of the private chat."""

    chat: Id | None = None
    topic: Positive | None = None
    bot: Positive | None = None


class TryQuery(SubjectFields):
    """A trial decision."""

    rule: Name | None = None


class PageQuery(RequestModel):
    """A part of a list."""

    offset: Number = 0
    limit: Number = 100


class TopQuery(RequestModel):
    """The length of a ranking, and its hours."""

    n: Number = 10
    hours: Number = 24


class HoursQuery(RequestModel):
    """How many hours, up to now."""

    hours: Number = 24


class ForgiveBody(SubjectFields):
    """Which counts to forgive; all rules by default."""

    rules: Annotated[list[Name], Field(max_length=100)] = Field(default_factory=list)


class BanBody(RequestModel):
    """A ban: `how_long` such as `1h`, or null for no end."""

    how_long: Text | None
    reason: Text = ""
    chat: Id | None = None


class UnbanQuery(RequestModel):
    """Where a ban is lifted."""

    chat: Id | None = None
    bot: Positive | None = None


class VersionedBody(RequestModel):
    """A change; with `if_version`, it is made only if that is still the newest version."""

    if_version: Number | None = None


class LimitBody(VersionedBody):
    """What to change of a rule; or `default`, which undoes all its changes."""

    limit: Text | None = None
    shadow: bool | None = None
    off: bool | None = None
    default: bool = False


class PreviewBody(RequestModel):
    """A change of a rule, to see what it would do."""

    name: Name
    limit: Text | None = None
    shadow: bool | None = None
    off: bool | None = None
    default: bool = False


class RollbackBody(VersionedBody):
    """The version to return to; by default the previous one."""

    version: Number | None = None


class PauseBody(VersionedBody):
    """How long all limits stay off."""

    how_long: Text


class ExemptBody(VersionedBody):
    """A user or chat to exempt, or to limit again."""

    id: Id
    exempt: bool = True


class PenaltyBody(VersionedBody):
    """A penalty; `after` null undoes the change."""

    after: Text | None
    ban: Text = "15m"
    grows: bool = False
    longest: Text | None = None


async def read_body(request: web.Request, kind: type[_Model]) -> _Model:
    """The body, parsed from JSON and validated.

    Raises:
        ProblemError: The body is not JSON, or not valid.
    """
    if request.content_type != "application/json":
        if request.body_exists:  # also if it was read already, for its CSRF token
            raise ProblemError(415, "expected Content-Type: application/json")
        return validated(kind, {})
    _check_encoding(request)
    try:
        async with asyncio.timeout(_SLOWEST):
            raw = await request.read()
        found = json.loads(raw, parse_constant=_refuse, object_pairs_hook=_object)
    except TimeoutError:
        raise ProblemError(408, "the body did not arrive in time") from None
    except (ValueError, RecursionError):
        raise ProblemError(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise ProblemError(400, "the body is not a JSON object")
    return validated(kind, found)


def read_query(request: web.Request, kind: type[_Model]) -> _Model:
    """The query of the URL, validated."""
    return validated(kind, _once_each(request.query))


def validated(kind: type[_Model], found: dict[str, Any]) -> _Model:
    """The data as a model.

    Raises:
        ProblemError: 422, with each invalid field and what is wrong with it.
    """
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        wrong = [  # a field that is no Unicode has no name
            {"field": ".".join(map(str, each["loc"])) or "a field", "problem": _words(each)}
            for each in error.errors(include_url=False, include_input=False)[:20]
        ]
    detail = "; ".join(f"{each['field']}: {each['problem']}" for each in wrong)
    raise ProblemError(422, detail, errors=wrong)


async def read_form(request: web.Request, *, for_csrf: bool = False) -> MultiMapping[str]:
    """The fields of a form. With `for_csrf`, any other body counts as an empty form."""
    # Other charsets can encode characters that UTF-8 refuses.
    if request.content_type != _FORM or (request.charset or "utf-8").lower() != "utf-8":
        if for_csrf:
            return MultiDict()
        raise ProblemError(415, f"expected Content-Type: {_FORM}, in UTF-8")
    _check_encoding(request)
    try:
        async with asyncio.timeout(_SLOWEST):
            found: Any = await request.post()
    except TimeoutError:
        raise ProblemError(408, "the body did not arrive in time") from None
    except (ValueError, LookupError):
        raise ProblemError(400, "the body is not a form") from None
    fields: MultiMapping[str] = found
    return fields


def _check_encoding(request: web.Request) -> None:
    """Refuse compressed bodies: 16 KiB need no compression, and a compressed body may be a bomb."""
    # Of several headers, the last one counts for aiohttp.
    if any(each != "identity" for each in request.headers.getall("Content-Encoding", [])):
        raise ProblemError(415, "expected no Content-Encoding")


def _once_each(fields: MultiMapping[str]) -> dict[str, Any]:
    if len(fields) != len(set(fields)):
        raise ProblemError(400, "a parameter is given twice")
    return dict(fields.items())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    found: str = error["msg"].removeprefix("Value error, ")
    return found[:1].lower() + found[1:]

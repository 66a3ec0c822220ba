"""Bodies: what is sent with a request, and what may be in it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Final, TypeVar

from aiohttp import web
from multidict import MultiDict, MultiMapping
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bot_ratelimit.admin.web.problems import ProblemError

MAX_BODY: Final = 16_384
"""Bytes. The longest is initData, of a kilobyte or two."""

_DIGITS: Final = re.compile(r"-?[0-9]{1,17}", re.ASCII)
_SLOWEST: Final = 10.0
_FORM: Final = "application/x-www-form-urlencoded"
MAX_ID: Final = 2**52
"""Ids of Telegram have 52 bits at most: https://core.telegram.org/bots/api#user."""

_Sent = TypeVar("_Sent", bound=BaseModel)


def _whole(value: object) -> object:
    """A whole number, also as it stands in an address."""
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
    int, BeforeValidator(_whole), Field(ge=-MAX_ID, le=MAX_ID), AfterValidator(_not_zero)
]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MAX_ID)]
Number = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_000_000_000)]
Text = Annotated[str, Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=300)]


class Sent(BaseModel):
    """What is sent: nothing but these fields, and each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WhichId(Sent):
    """Whom a path is about."""

    id: Id


class Place(Sent):
    """Where somebody is looked at: unless given, in their private chat."""

    chat: Id | None = None
    topic: Positive | None = None
    bot: Positive | None = None


class Trial(Place):
    """A test call."""

    rule: Name | None = None


class Page(Sent):
    """Some of a list."""

    offset: Number = 0
    limit: Number = 100


class Most(Sent):
    """How many of a ranking, of how many hours."""

    n: Number = 10
    hours: Number = 24


class Hours(Sent):
    """How many hours, up to now."""

    hours: Number = 24


class Forgive(Place):
    """Whom and what to forgive; every rule unless named."""

    rules: Annotated[list[Name], Field(max_length=100)] = Field(default_factory=list)


class BanFor(Sent):
    """A ban: `how_long` as `1h`, or null for good."""

    how_long: Text | None
    reason: Text = ""
    chat: Id | None = None


class Unban(Sent):
    """Where a ban is lifted."""

    chat: Id | None = None
    bot: Positive | None = None


class Versioned(Sent):
    """A change that is made only to the version that the operator has seen, if it says so."""

    if_version: Number | None = None


class Change(Versioned):
    """What to change of a rule; or `default`, which takes all changes back."""

    limit: Text | None = None
    shadow: bool | None = None
    off: bool | None = None
    default: bool = False


class Previewed(Sent):
    """A change of a rule, to see what it would do."""

    name: Name
    limit: Text | None = None
    shadow: bool | None = None
    off: bool | None = None
    default: bool = False


class Rollback(Versioned):
    """Which version is to hold again; the one before unless given."""

    version: Number | None = None


class Pause(Versioned):
    """For how long all limits are off."""

    how_long: Text


class Exempt(Versioned):
    """Who is exempt, or is not."""

    id: Id
    exempt: bool = True


class PenaltySent(Versioned):
    """A penalty; `after` null takes the change back."""

    after: Text | None
    ban: Text = "15m"
    grows: bool = False
    longest: Text | None = None


async def body_of(request: web.Request, kind: type[_Sent]) -> _Sent:
    """What stands in the body, as JSON.

    Raises:
        ProblemError: It is not such JSON.
    """
    if request.content_type != "application/json":
        if request.body_exists:  # also if it was read already, for its CSRF token
            raise ProblemError(415, "expected Content-Type: application/json")
        return checked(kind, {})
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
    return checked(kind, found)


def query_of(request: web.Request, kind: type[_Sent]) -> _Sent:
    """What stands after `?` in the address."""
    return checked(kind, _once_each(request.query))


def checked(kind: type[_Sent], found: dict[str, Any]) -> _Sent:
    """What is sent, if every part of it is right.

    Raises:
        ProblemError: 422, with each wrong field and what is wrong with it.
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


async def form_of(request: web.Request, *, of_csrf: bool = False) -> MultiMapping[str]:
    """The fields of a form. For a CSRF token anything else is a form without fields."""
    # Other charsets can spell what no UTF-8 has.
    if request.content_type != _FORM or (request.charset or "utf-8").lower() != "utf-8":
        if of_csrf:
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
    """Nothing of 16 KiB needs to be compressed, but a bomb does."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ProblemError(415, "expected no Content-Encoding")


def _once_each(fields: MultiMapping[str]) -> dict[str, Any]:
    if len(fields) != len(set(fields)):
        raise ProblemError(400, "a parameter is given twice")
    return dict(fields.items())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    found: str = error["msg"].removeprefix("Value error, ")
    return found[:1].lower() + found[1:]

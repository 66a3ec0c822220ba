"""Problems: what went wrong with a request, as RFC 9457 defines it, or as a page for browsers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.web.console import console_of, session_of, wants_page
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError

log = logging.getLogger("bot_ratelimit")

MAX_BODY: Final = 16_384
"""Bytes. The longest body is initData, of one or two kilobytes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request failed.

    ::

        {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "..."}
    """

    status: int
    detail: str = ""
    """What is wrong and the fix, in a sentence; never a secret."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Additional members of the JSON object."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the status."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return "Error"

    def to_response(self) -> web.Response:
        """As `application/problem+json`."""
        content = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            content["detail"] = self.detail
        return web.Response(
            text=json.dumps({**content, **self.more}, ensure_ascii=False),
            status=self.status,
            content_type="application/problem+json",
            headers=self.headers,
        )


class ProblemError(Exception):
    """A request fails with this problem."""

    def __init__(self, status: int, detail: str = "", **more: Any) -> None:
        super().__init__(detail)
        headers: Mapping[str, str] = more.pop("headers", {})
        self.problem = Problem(status, detail, more, headers)


_STATUSES = ((StorageError, 503), (ConflictError, 409), (ConfigError, 422))


def problem_of(error: RateLimitError) -> Problem:
    """The HTTP problem for an error of this package."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    if isinstance(error, ConfigError) and error.kind != ConfigError.kind:
        status = 503  # Redis refused; the request itself is valid
    headers = {"Retry-After": "2"} if status == 503 else {}
    return Problem(status, str(error), headers=headers)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a response that describes the problem."""
    # Otherwise the outer application decides how large a body may be. If it has read the body
    # already, its limit applies.
    with suppress(RuntimeError):
        request = request.clone(client_max_size=MAX_BODY)
    try:
        return await handler(request)
    except ProblemError as error:
        problem = error.problem
    except RateLimitError as error:
        problem = problem_of(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        problem = _of_http(error)
    except (ConnectionError, web.RequestPayloadError):
        # The client may be gone. If this were raised, the bot's log would show an error.
        problem = Problem(400, "the body is broken, or the connection was closed")
    except Exception:
        log.exception("admin_app: %s %s failed", request.method, request.rel_url.raw_path)
        problem = Problem(500, "a bug: see the bot's log")
    return _page(request, problem) if wants_page(request) else problem.to_response()


def _page(request: web.Request, problem: Problem) -> web.Response:
    pages = console_of(request).pages
    needs_login = session_of(request) is None or problem.status in {401, 429}
    page: web.Response = (pages.login_page if needs_login else pages.error_page)(request, problem)
    page.set_status(problem.status)
    page.headers.update(problem.headers)
    return page


def _of_http(error: web.HTTPException) -> Problem:
    """The problem for an error of aiohttp itself: 404, 405, 413."""
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    details = {
        404: "there is no such page",
        405: "this path does not support that method",
        413: f"the body is larger than {MAX_BODY // 1024} KiB",
    }
    return Problem(error.status, details.get(error.status, error.reason), headers=headers)

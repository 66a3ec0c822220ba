"""Problems: what went wrong with a request, as RFC 9457 defines it, or as a page for browsers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.fields import FieldError
from bot_ratelimit.admin.web.console import console_of, session_of, wants_page
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError

log = logging.getLogger("bot_ratelimit")

MAX_BODY: Final = 16_384
"""Bytes. The longest body is initData, of one or two kilobytes."""

_STATUSES: Final = ((StorageError, 503), (ConflictError, 409), (ConfigError, 422))
_DETAILS: Final = {
    404: "there is no such page",
    405: "this path does not support that method",
    413: f"the body is larger than {MAX_BODY // 1024} KiB",
}


class ProblemError(Exception):
    """A request fails, with what is wrong and the fix in a sentence, which has no secret.

    `more` are additional members of the JSON object.
    """

    def __init__(
        self,
        status: int,
        detail: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more
        with suppress(ValueError):
            self.title = HTTPStatus(status).phrase

    title = "Error"
    """The name of the status."""

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
        problem = error
    except RateLimitError as error:
        problem = _of_package(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        detail = _DETAILS.get(error.status, error.reason)
        problem = ProblemError(error.status, detail, headers=headers)
    except (ConnectionError, web.RequestPayloadError):
        # The client may be gone. If this were raised, the bot's log would show an error.
        problem = ProblemError(400, "the body is broken, or the connection was closed")
    except Exception:
        log.exception("admin_app: %s %s failed", request.method, request.rel_url.raw_path)
        problem = ProblemError(500, "a bug: see the bot's log")
    if not wants_page(request):
        return problem.to_response()
    pages = console_of(request).pages
    needs_login = session_of(request) is None or problem.status in {401, 429}
    page: web.Response = (pages.login_page if needs_login else pages.error_page)(request, problem)
    page.set_status(problem.status)
    page.headers.update(problem.headers)
    return page


def _of_package(error: RateLimitError) -> ProblemError:
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    if isinstance(error, ConfigError) and error.kind != ConfigError.kind:
        status = 503  # Redis refused; the request itself is valid
    if isinstance(error, FieldError):
        detail = "; ".join(f"{each['field']}: {each['problem']}" for each in error.wrong)
        return ProblemError(status, detail, errors=error.wrong)
    return ProblemError(status, str(error), headers={"Retry-After": "2"} if status == 503 else {})

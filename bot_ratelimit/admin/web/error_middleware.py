"""The error middleware: every failure becomes a response, as JSON for programs, else as a page."""

from __future__ import annotations

import logging
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

from bot_ratelimit.admin.web.console import console_of, session_of, wants_page
from bot_ratelimit.admin.web.problems import Problem, ProblemError, problem_of
from bot_ratelimit.admin.web.validation import MAX_BODY
from bot_ratelimit.errors import RateLimitError

log = logging.getLogger("bot_ratelimit")


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
    page = (pages.login_page if needs_login else pages.error_page)(request, problem)
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

"""Problem: what went wrong with a request, as RFC 9457 defines it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError


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

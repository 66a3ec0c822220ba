"""Action: a page that previews a change, with a button that makes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.web.console import console_of, control_of
from bot_ratelimit.admin.web.forms import Form
from bot_ratelimit.admin.web.rendering import page
from bot_ratelimit.admin.web.validation import read_form
from bot_ratelimit.errors import ConfigError

Describe: TypeAlias = Callable[[Control, Form], Awaitable[dict[str, Any]]]
Perform: TypeAlias = Callable[[Control, Form], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that operators do in two requests: GET previews the change, POST makes it.

    Args:
        path: Its path, and the name of its template.
        describe: Returns the template's values. `sends` are the fields that the button sends;
            without them there is no button yet. `error` says what is wrong with the input.
        perform: Makes the change, and returns where to go next, relative to the root of the page.
    """

    path: str
    describe: Describe
    perform: Perform

    def routes(self) -> list[web.RouteDef]:
        """One route for the preview, one for the change."""
        return [web.get(f"/{self.path}", self._show), web.post(f"/{self.path}", self._do)]

    async def _show(self, request: web.Request) -> web.Response:
        return await self._shown(request, Form(request.query))

    async def _do(self, request: web.Request) -> web.Response:
        form = Form(await read_form(request))
        try:
            where = await self.perform(control_of(request), form)
        except ConflictError as error:
            text = f"Nothing was changed. {error}. The preview below is for the newest version"
            return await self._shown(request, form, text, 409)
        except ConfigError as error:
            return await self._shown(request, form, str(error), 422)
        raise web.HTTPSeeOther(console_of(request).root(request) + where)

    async def _shown(
        self, request: web.Request, form: Form, error: str = "", status: int = 200
    ) -> web.Response:
        found = {"error": "", "sends": None, **await self.describe(control_of(request), form)}
        if error:
            found["error"] = error
        elif found["error"]:
            status = 422
        found["wrong"] = status == 422
        template = f"actions/{self.path}.html"
        return page(request, template, {**found, "path": self.path, "typed": form}, status)

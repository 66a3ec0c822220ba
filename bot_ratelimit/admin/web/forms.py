"""Forms: an operation as a page in two steps: GET says what will happen, POST does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from bot_ratelimit.admin import questions
from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import Fields, Forgive, Target, checked
from bot_ratelimit.admin.operations import OPERATIONS, Operation
from bot_ratelimit.admin.questions import Question
from bot_ratelimit.admin.web.console import console_of, control_of, words_of
from bot_ratelimit.admin.web.rendering import link, page
from bot_ratelimit.admin.web.requests import from_texts, read_form
from bot_ratelimit.admin.wording import who
from bot_ratelimit.admin.words import Marked, Words, capital, code
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject

_STATES: Final = {
    "on": ("On: refuses excess updates", {"shadow": False, "off": False}),
    "trial": ("Trial: counts and reports, but refuses nobody", {"shadow": True, "off": False}),
    "off": ("Off: neither counts nor refuses", {"off": True}),
}


@dataclass(frozen=True, slots=True)
class Input:
    """A field of a form: a line of text, or choices."""

    name: str
    label: str
    value: str = ""
    hint: str = ""
    kind: str = "text"
    choices: tuple[tuple[str, object, bool], ...] = ()
    is_required: bool = False
    is_wrong: bool = False


Inputs = Callable[[Control, Words, Mapping[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Form:
    """The page of an operation.

    Args:
        path: Its path.
        operation: What it does.
        title: What it is called before the fields are filled in.
        inputs: Returns the `inputs` for the fields, their `title`, and `links`.
        waits_for: Until one of these fields is given, nothing is asked.
    """

    path: str
    operation: Operation
    title: str
    inputs: Inputs
    waits_for: tuple[str, ...] = ()

    def routes(self) -> list[web.RouteDef]:
        """One route for the preview, one for the change."""
        return [web.get(f"/{self.path}", self._show), web.post(f"/{self.path}", self._do)]

    async def _show(self, request: web.Request) -> web.Response:
        return await self._shown(request, self._given(request.query))

    async def _do(self, request: web.Request) -> web.Response:
        given = self._given(await read_form(request))
        control = control_of(request)
        try:
            sent = checked(self.operation.fields, given)
            found = await self.operation.act(control, sent)
        except ConflictError as error:
            text = words_of(request)("Nothing was changed: {error}", error=error)
            return await self._shown(request, _without_version(given), text, 409)
        except ConfigError as error:
            return await self._shown(request, given, str(error), 422)
        raise web.HTTPSeeOther(console_of(request).root(request) + _next(sent, self.path, found))

    def _given(self, texts: MultiMapping[str]) -> dict[str, Any]:
        """The fields; the form says `user` and `chat` where the operation says `id`."""
        found = from_texts(self.operation.fields, texts)
        if "id" in self.operation.fields.model_fields and "id" not in found:
            found["id"] = found.pop("user", None) or found.pop("chat", None)
        state = _STATES.get(found.pop("state", ""))
        known = {*self.operation.fields.model_fields}
        found = {name: each for name, each in found.items() if name in known and each is not None}
        return found if state is None else found | state[1]

    async def _shown(
        self, request: web.Request, given: dict[str, Any], error: str = "", status: int = 200
    ) -> web.Response:
        control, words = control_of(request), words_of(request)
        found = await self.inputs(control, words, given)
        question: Question | None = None
        sends: dict[str, Any] = {}
        if not self.waits_for or any(name in given for name in self.waits_for):
            try:
                sent = checked(self.operation.fields, found.pop("given", given))
                assert self.operation.ask is not None  # noqa: S101 - each form changes something
                question = await self.operation.ask(control, words, sent)
                sends = _sends(sent, question)
            except ConfigError as problem:
                error, status = error or str(problem), 422 if status == 200 else status
        found.pop("given", None)
        inputs = [replace(each, is_wrong=status == 422) for each in found.pop("inputs", ())]
        shown = {
            "title": words(self.title), "path": self.path, "links": (), "kept": {},
            **found, "inputs": inputs, "question": question, "sends": sends, "error": error,
            "back": _back(self.path, given, words),
        }  # fmt: skip
        return page(request, "operation.html", shown, status)


def _sends(sent: Fields, question: Question) -> dict[str, Any]:
    """The hidden fields of the button: what was asked, and of which version."""
    found = {name: each for name, each in sent.model_dump().items() if each not in (None, False)}
    if "exempt" in type(sent).model_fields or "shadow" in type(sent).model_fields:
        found |= {name: False for name, each in sent.model_dump().items() if each is False}
    texts = {name: {True: "yes", False: "no"}.get(each, each) if isinstance(each, bool) else each
             for name, each in found.items()}  # fmt: skip
    if "how_long" in type(sent).model_fields and texts.get("how_long") is None:
        texts["how_long"] = "forever"
    return texts | ({} if question.version is None else {"if_version": question.version})


def _without_version(given: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in given.items() if name != "if_version"}


def _subject(sent: Any) -> Subject | None:
    found = getattr(sent, "subject", None)
    if isinstance(found, Subject):
        return found
    if (id_ := getattr(sent, "id", None)) is None:
        return None
    return Subject(chat=id_) if id_ < 0 else Subject(user=id_)


def _next(sent: Any, path: str, found: Any) -> str:
    """Where to go after the change, relative to the root of the page."""
    done = {"done": path}
    if isinstance(found, Overrides):
        done = {"done": "changed", "count": str(found.version)}
    elif path == "forgive":
        done["count"] = str(len(found.rules))
    elif path == "unban":
        done["count"] = str(int(found.was_banned))
    subject = _subject(sent)
    where = f"user?{link(subject)}&" if subject is not None else "?"
    return where + urlencode(done)


def _back(path: str, given: dict[str, Any], words: Words) -> tuple[str, Marked]:
    if path == "rollback":
        return "history", words("History")
    names = ("id", "chat", "bot", "as_user")
    try:
        found = checked(Target, {name: given[name] for name in names if name in given})
        subject = _subject(found)
    except ConfigError:
        subject = None
    if subject is not None:
        return f"user?{link(subject)}", capital(who(words, subject))
    return ("bans", words("Bans")) if path == "ban" else ("#limits-title", words("Limits"))


# --- the fields of each form ----------------------------------------------------------------------


def _text(form: type[Fields], name: str, label: str, given: Mapping[str, Any],
          default: object = "", *, is_required: bool = False) -> Input:  # fmt: skip
    hint = form.model_fields[name].description or ""
    value = given.get(name, default)
    return Input(name, label, "" if value is None else str(value), hint, is_required=is_required)


async def _nothing(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    return {}


async def _forgive(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    sent = checked(Forgive, {**given, "rules": []})
    counts = questions.counted(await control.show(sent.subject), await control.limits())
    if len(counts) < 2:
        return {}
    chosen = given.get("rules") or [each.rule for each in counts]
    choices = tuple((each.rule, code(each.rule), each.rule in chosen) for each in counts)
    kept = {name: each for name, each in given.items() if name != "rules"}
    which = Input("rules", "Counts to delete", kind="checkbox", choices=choices)
    return {"inputs": [which], "kept": kept}


async def _ban(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    fields = OPERATIONS["ban"].fields
    inputs = [
        _text(fields, "id", "User", given, is_required=True),
        _text(fields, "chat", "Only in chat", given),
        _text(fields, "how_long", "How long", given, "1h", is_required=True),
        _text(fields, "reason", "Why", given),
    ]
    kept = {name: "yes" if each is True else each for name, each in given.items()
            if name in ("bot", "as_user") and each}  # fmt: skip
    return {"inputs": inputs, "kept": kept}


async def _limit(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    rule = await control.rule(str(given.get("name", "")))
    live = await control.changes.current()
    inputs = []
    if (rule.limit is not None or rule.is_given) and not rule.ban_ms:
        inputs.append(_text(OPERATIONS["set"].fields, "limit", "Limit", given, rule.limit or ""))
    shadow, off = given.get("shadow", rule.shadow), given.get("off", rule.off)
    mode = "off" if off else "trial" if shadow else "on"
    states = [each for each in _STATES if each != "trial" or not rule.ban_ms]
    choices = tuple((each, words(_STATES[each][0]), each == mode) for each in states)
    inputs.append(Input("state", "State", kind="radio", choices=choices))
    undo = f"limit?{urlencode({'name': rule.name, 'default': 'yes'})}"
    links = [(undo, words("Undo the live change"))] if rule.name in live.rules else []
    # Only what differs from what is in force: the form always sends all fields.
    same = {name for name in ("limit", "shadow", "off") if given.get(name) == getattr(rule, name)}
    return {"title": words("Change {name}", name=code(rule.name, 100)), "inputs": inputs,
            "kept": {"name": rule.name}, "links": links,
            "given": {name: each for name, each in given.items() if name not in same}}  # fmt: skip


async def _penalty(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    rule = next((each for each in await control.limits() if each.ban_ms), None)
    live, fields = await control.changes.current(), OPERATIONS["penalty"].fields
    grows = given.get("grows", bool(rule and rule.longest_ms) if "after" not in given else False)
    text = words(fields.model_fields["grows"].description or "")
    inputs = [
        _text(fields, "after", "Refused attempts", given, rule.limit if rule else "10/minute"),
        _text(fields, "ban", "Ban", given, f"{rule.ban_ms // 1_000}s" if rule else "15m"),
        Input("grows", "Growing", kind="checkbox", choices=(("yes", text, bool(grows)),)),
    ]
    links = [("penalty?after=default", words("Undo the live change"))] if live.penalty else []
    if rule is not None:
        switch = words("Switch on") if rule.off else words("Switch off")
        links.append((f"limit?{urlencode({'name': rule.name})}", switch))
    title = words("Change the penalty") if rule else words("Add a penalty")
    return {"title": title, "inputs": inputs, "links": links}


async def _pause(control: Control, words: Words, given: Mapping[str, Any]) -> dict[str, Any]:
    how_long = _text(OPERATIONS["pause"].fields, "how_long", "How long", given, "1h")
    return {"inputs": [how_long]}


FORMS: Final = (
    Form("forgive", OPERATIONS["forgive"], "Forgive", _forgive),
    Form("ban", OPERATIONS["ban"], "Ban somebody", _ban, ("how_long",)),
    Form("unban", OPERATIONS["unban"], "Lift the ban", _nothing),
    Form("exempt", OPERATIONS["exempt"], "Exemption", _nothing),
    Form("limit", OPERATIONS["set"], "Change", _limit, ("limit", "shadow", "off", "default")),
    Form("penalty", OPERATIONS["penalty"], "Change the penalty", _penalty, ("after",)),
    Form("pause", OPERATIONS["pause"], "Pause all limits", _pause, ("how_long",)),
    Form("resume", OPERATIONS["resume"], "Switch all limits on", _nothing),
    Form("rollback", OPERATIONS["rollback"], "Roll back", _nothing),
)

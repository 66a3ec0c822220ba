"""Who has a line of the log, or an error, finds its words in docs/troubleshooting.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from .pages import DOCS, ROOT

PACKAGE = ROOT / "bot_ratelimit"
LEVELS = {"info", "warning", "error", "exception", "log"}  # at DEBUG nobody has to look
# Answers of the page and of the commands, which operators see, and what is not for users.
ANSWERS = {"ProblemError", "UnclearError", "InitDataError", "ResponseError", "AttributeError"}
INTERNAL = {"NotImplementedError", "TypeError", "AssertionError", "CancelledError"}
TEXTS = (ast.Constant, ast.JoinedStr, ast.BinOp)
PLACEHOLDER = re.compile(r"%[-+.\d]*[a-z]")


def text(node: ast.expr) -> str:
    """The text that is written there, with an ellipsis for what is known only later."""
    match node:
        case ast.Constant(value=str(value)):
            return PLACEHOLDER.sub("…", value)
        case ast.JoinedStr(values=values):
            return "".join(text(each) for each in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text(left) + text(right)
    return "…"


def messages(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """The lines of the log, and the errors, that a module writes: which, and the text."""
    for call in nodes:
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=args):
                if level in LEVELS:
                    yield "Log lines", max(map(text, args), key=len)
            case ast.Call(func=ast.Name(id=name), args=[first, *_]):
                if name.endswith("Error") and name not in ANSWERS | INTERNAL:
                    yield "Errors", text(first)


def is_found(message: str, phrase: str) -> bool:
    return bool(re.search(".*".join(map(re.escape, phrase.split("…"))), message))


def test_the_page_has_the_words_of_the_package_and_no_others() -> None:
    """Each message with words of its own is found in its section; the page names no other text."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    listed: dict[str, set[str]] = {}
    for section in ("Log lines", "Errors"):  # what stands before the colon of each point
        points = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
        named = "".join(re.findall(r"(?ms)^- (.+?`):", points))
        listed[section] = set(re.findall(r"`([^`]+)`", named))
    texts = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
        texts |= {text(node) for node in nodes if isinstance(node, TEXTS)}
        for section, message in messages(nodes):
            if len(re.findall(r"[a-z]{3,}", message)) > 1:
                assert any(is_found(message, each) for each in listed[section]), (path, message)
    for phrase in set().union(*listed.values()):
        assert any(is_found(each, phrase) for each in texts), phrase

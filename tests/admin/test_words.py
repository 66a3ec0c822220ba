"""Words: both languages say the same, and nothing in them breaks a message."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from string import Formatter

import bot_ratelimit.admin as package
from bot_ratelimit import MemoryStorage, Rule
from bot_ratelimit.admin.fields import Fields
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.web.forms import FORMS
from bot_ratelimit.admin.words import Marked, Words, as_html, code
from tests.admin.telegram.operators import operated_bot_on
from tests.admin.web import PAGE, bot_on, site
from tests.tables import table

FOLDER = Path(package.__file__).parent
RUSSIAN = tomllib.loads((FOLDER / "russian.toml").read_text("utf-8"))


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def texts_in_code() -> set[str]:
    """What `words` is called with, as far as it is written there, and what the templates show."""
    found = set()
    for file in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in {"words", "_words"} and isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
    for file in (FOLDER / "web" / "templates").glob("*.html"):
        calls = re.findall(r"words\((?:\"([^\"]*)\"|'([^']*)')", file.read_text("utf-8"))
        found |= {one or other for one, other in calls}
    return found


def test_every_text_is_there_in_russian_with_the_same_fields() -> None:
    """A text that operators read exists in Russian, except those of the shell alone."""
    shell = {"everything", "every count and ban", "Clear", "Clear?"}
    shell |= {"Keys deleted: {count}", "({limit})", "{limit}"}
    shell |= {text for text in texts_in_code() if text.startswith("Deletes {what}")}
    assert texts_in_code() - shell - RUSSIAN.keys() == set()
    assert {form.title for form in FORMS} <= RUSSIAN.keys()
    for english, russian in RUSSIAN.items():
        assert fields(english) == fields(russian), english
    for name in ("ban", "set", "penalty", "pause"):  # labels and hints of the page's forms
        kind: type[Fields] = OPERATIONS[name].fields
        for field in set(kind.model_fields) & {"how_long", "reason", "limit", "after", "ban"}:
            assert kind.model_fields[field].description in RUSSIAN, (name, field)


@table(
    ("header", "language"),
    [
        ("ru", "ru"), ("ru-RU,ru;q=0.9,en;q=0.8", "ru"), ("en-GB, ru;q=0.9", "en"), ("", "en"),
        ("de, en;q=0.5, ru;q=0.4", "en"), ("*, de", "en"), ("de, RU;q=abc", "ru"), ("*", "en"),
        ("r" * 9_000, "en"),
    ],
)  # fmt: skip
def test_a_browser_says_the_language(header: str, language: str) -> None:
    """The first language of those that there are; English for everything else."""
    assert Words.accepted(header).language == language


def test_fields_are_escaped_and_cut() -> None:
    """A field is text: no markup, one line, no invisible characters, at most 500 characters."""
    words = Words("en")
    said = as_html(words("That did not work: {error}", error=code("<b>&\n\u202e" + "x" * 1_000)))
    assert "<code>&lt;b&gt;&amp;\\n\\u202e" in said
    assert said.count("x") < 500
    assert said.endswith("…</code>")
    assert words("That did not work: {error}", error="{prefix}") == "That did not work: {prefix}"
    assert words("{error}", error="\x0ehostile\x0f") == "\\x0ehostile\\x0f"
    assert words("{error}", error=Marked("as it is")) == "as it is"


ENGLISH = re.compile(r"\b(?:the|is|of|for|left|banned|allowed|refused|every|user|limit)\b")


async def test_a_whole_conversation_in_russian() -> None:
    """Every command, question and button has its Russian words; for all others English ones."""
    async with operated_bot_on(MemoryStorage(), statistics=True) as bot:
        for language, said in (
            ("en", "Limits"),
            ("de", "Limits"),
            (None, "Limits"),
            ("RU-ru", "Лимиты"),
        ):
            assert f"<b>{said}</b>" in await bot.says("/limits", language=language)
        for text in (
            *("/limits", "/who 42", "/try 42", "/top", "/stats", "/sending", "/health", "/bans"),
            *("/history", "/forgive 42", "/ban 42 1h spam", "/unban 42", "/rollback", "/setlimit"),
            *("/setlimit messages 1/h", "/pause 1d", "/resume", "/penalty", "/penalty 9/h 1h"),
            *("/exempt 42", "/exempt 42 x", "/who", "/who x", "/ban 42", "/ban 1002 1h"),
        ):
            told = await bot.says(text, language="ru")
            told = re.sub("<code>.*?</code>|/[a-z]+|`[a-z]+`", "", told)
            assert re.search("[а-я]{3}", told), text
            assert not ENGLISH.search(told), (text, told)
        assert "бан до" in await bot.presses("Забанить", language="ru")


async def test_names_and_reasons_are_not_translated() -> None:
    """Rules called `on` or `until`, and the words of a reason, stay as they are in Russian."""
    rules = Rule("1/h", name="on"), Rule("5/h", name="until")
    async with operated_bot_on(MemoryStorage(), *rules) as bot:
        await bot.asks("/setlimit until 2/h", "Change")
        assert "until: 5/hour -&gt; 2/hour" in await bot.says("/history", language="ru")
        named = "expected one of bots:member, on, until"
        assert named in await bot.says("/setlimit nope 2/h", language="ru")
        await bot.asks("/ban 42 1h s, off, on", "Ban")
        told = await bot.says("/audit", language="ru")
        assert re.search(r"не забанен -&gt; до 20[^а-я]*, by Anna .*, s, off, on", told)


async def test_the_page_in_russian() -> None:
    """With a Russian browser no page has English in it, and says so in its `lang`."""
    paths = (
        *("", "user?user=7", "bans", "history", "ban?user=7&how_long=1h", "pause?how_long=1h"),
        *("limit?name=messages&limit=1/h", "penalty?after=5/h&ban=1h", "resume", "forgive?user=7"),
        *("unban?user=7", "exempt?user=7", "user?user=4x", "ban?how_long=1h", "nowhere", "x?y"),
    )
    headers = {**PAGE, "Accept-Language": "ru-RU,ru;q=0.9,en;q=0.5"}
    async with site(bot_on(MemoryStorage())) as found, found.visitor() as visitor:
        await found.control.set_rule("messages", "2/hour", off=True)
        await found.control.changes.pause("1h")
        await found.control.changes.set_exempt(-100, False)
        for path in ("", *paths):
            text = (await visitor.get(path, headers=headers)).text
            assert '<html lang="ru">' in text
            said = re.sub(r"(?s)<code>.*?</code>|<title>.*?</title>", "", text)
            said = re.sub(r"<[^>]*>", " ", said)
            assert re.search("[а-я]{3}", said), path
            assert not ENGLISH.search(said), (path, ENGLISH.search(said), said[-400:])
            if not visitor.csrf:
                await visitor.log_in()
        for path, label in {
            "limit?name=messages": ">Лимит</label>",
            "penalty": ">Длительность бана</label>",
            "user?user=4x": "ожидается целое число, например 123456789.",
            "history": "все лимиты: включены -> выключены до 20",
        }.items():
            page = await visitor.get(path, headers=headers)
            assert label in page.text + page.words

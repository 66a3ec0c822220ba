"""The package as a whole: its layers, its names, its documents, its wheel."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from inspect import getdoc
from pathlib import Path
from pkgutil import resolve_name
from pydoc import plaintext, render_doc
from textwrap import dedent

import bot_ratelimit
from bot_ratelimit.algorithms.script import SCRIPT
from tests.guide.pages import ROOT
from tests.servers import PATIENCE

PACKAGE = ROOT / "bot_ratelimit"
FILES = [*PACKAGE.rglob("*.py")]

# From the top of the house down: a module imports only from its own line and from those below it.
# `incoming` and `outgoing` do not know each other.
FLOORS = [
    {"__init__", "__main__", "testing"},
    {"admin"},
    {"conformance", "metrics", "otel"},
    {"series"},
    {"incoming", "outgoing"},
    {"config"},
    # Nothing from here on imports aiogram.
    {"limiter"},
    {"storage"},
    {"algorithms"},
    {"rules"},
    {"errors"},
]
STRANGERS = {("incoming", "outgoing"), ("outgoing", "incoming")}
ABOVE_THE_LINE = {"__init__", "__main__", "admin", "incoming", "outgoing"}
OURS = "bot_ratelimit."
KNOW_REDIS = ("config.settings", "storage.redis.")


@cache
def imports() -> dict[str, set[str]]:
    """For each module, all that it imports at run time, anywhere in the file."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES}

    def imported(tree: ast.AST) -> Iterator[str]:
        for node in ast.iter_child_nodes(tree):
            match node:
                case ast.expr() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    pass
                case ast.Import(names=aliases):
                    yield from (alias.name for alias in aliases)
                case ast.ImportFrom(module=str(module), names=aliases, level=0):
                    within = [f"{module}.{alias.name}" for alias in aliases]
                    yield from [each for each in within if each.removeprefix(OURS) in names] or [
                        module
                    ]
                case _:
                    assert not isinstance(node, ast.ImportFrom), "imports are absolute"
                    yield from imported(node)

    return {name: set(imported(ast.parse(path.read_text()))) for name, path in names.items()}


def room(module: str) -> str:
    """The file or folder of the package that contains a module."""
    return module.split(".")[0]


def test_modules_import_only_downwards() -> None:
    """No module imports one of a layer above its own, and there are no cycles inside a layer."""
    floor = {name: i for i, rooms in enumerate(FLOORS) for name in rooms}
    own = {
        name: {each.removeprefix(OURS) for each in found if each.startswith(OURS)}
        for name, found in imports().items()
    }
    assert {*map(room, own)} <= {*floor}, "a module without a place in FLOORS"
    upward = [
        f"{name} imports {each}"
        for name, found in own.items()
        for each in found
        if floor[room(each)] < floor[room(name)] or (room(name), room(each)) in STRANGERS
    ]
    assert upward == []
    assert [*TopologicalSorter(own).static_order()]


def test_only_some_layers_know_aiogram_and_redis() -> None:
    """A limiter works without a bot; the storage uses redis-py, and the settings make a client."""

    def importers(package: str) -> set[str]:
        return {name for name, found in imports().items() if package in map(room, found)}

    assert {*map(room, importers("aiogram"))} <= ABOVE_THE_LINE
    assert [name for name in importers("redis") if not name.startswith(KNOW_REDIS)] == []


def test_the_code_map_names_every_module() -> None:
    """ARCHITECTURE.md names each module, or its inner folder, and nothing that is not there."""
    _, code_map, *_ = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("```")
    named, folders = set(), [""]  # the folder of each indent
    for indent, names in re.findall(r"(?m)^((?:  )+)([\w./]+(?:, [\w./]+)*)(?= |$)", code_map):
        del folders[len(indent) // 2 :]
        for name in names.split(", "):
            suffix = "" if name.endswith(("/", ".lua")) else ".py"
            named.add(f"{folders[-1]}{name}{suffix}")
        folders.append(f"{folders[-1]}{names}")
    assert [path for path in named if not (PACKAGE / path).exists()] == []
    shown = {f"{Path(path).parent}/" for path in named}  # folders with their modules
    inner = tuple(path for path in named - shown if path.endswith("/"))  # admin/web/
    modules = {path.relative_to(PACKAGE).as_posix() for path in FILES if path.stem != "__init__"}
    assert {each for each in modules if not each.startswith(inner)} <= named


def test_a_public_name_shows_how_it_is_used() -> None:
    """Its docstring has one sentence, then an example or a table; an example is valid Python."""
    methods = ("hit", "peek", "acquire", "charge", "refund", "reset", "slot", "ban", "statistics")
    more = ("admin.admin_app", "metrics.PrometheusMetrics", "testing.Clock", "testing.FlakyStorage")
    public = [*bot_ratelimit.__all__, *(f"Limiter.{each}" for each in methods), *more]
    for name in {*public} - {"NEVER_REFUSED"}:
        text = getdoc(resolve_name(f"bot_ratelimit.{name}")) or ""
        assert re.match(r".+[.:]$", text.partition("\n")[0]), name
        examples = re.findall(r"(?m)::\n\n((?:    .*\n|\n)+)", text + "\n")
        assert examples or "\n====" in text or "Attributes:" in text, name
        for example in examples:
            if name not in {"LogObserver", "Journal", "ConfigError"}:  # output
                compile(dedent(example), name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_names_of_the_contract_are_public() -> None:
    """The promised names can be imported from the package itself; `help()` repeats no long list."""
    fixed = "Algorithm ConfigError Decision Limit Limiter MemoryStorage RateLimitError \
        RateLimitMiddleware RedisStorage Rule Scope Settings StorageError Subject"
    assert set(fixed.split()) <= set(bot_ratelimit.__all__)
    assert sorted(bot_ratelimit.__all__) == sorted(set(bot_ratelimit.__all__))
    text = render_doc(bot_ratelimit, renderer=plaintext)
    assert not [name for name in bot_ratelimit.NEVER_REFUSED if text.count(f"{name!r}") > 1]


USE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import bot_ratelimit
from bot_ratelimit.algorithms.script import SCRIPT
limiter = bot_ratelimit.Limiter(bot_ratelimit.MemoryStorage())
decision = asyncio.run(limiter.hit("1/s", bot_ratelimit.Subject(user=42)))
print(bot_ratelimit.__file__, len(SCRIPT), decision.allowed)
"""


def test_the_wheel_works_where_it_is_installed(tmp_path: Path) -> None:
    """It has every module, script, template and `py.typed`, and nothing else.

    Installed elsewhere, the package imports, finds its script and decides.
    """
    # The wheel is built by the installed hatchling or by one that pip downloads.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip(*("wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", tmp_path, ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if ".dist-info/" not in name} == {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"bot_ratelimit/py.typed", "bot_ratelimit/algorithms/frame.lua"} <= {*names}
    assert {"METADATA", "LICENSE"} <= {Path(name).name for name in names}
    home = tmp_path / "home"
    pip(*("install", "--quiet", "--no-deps", "--no-compile", "--no-index", "--target", home, wheel))
    command = [sys.executable, "-P", "-W", "error", "-c", USE, home]
    told = subprocess.check_output(command, cwd=tmp_path, text=True, timeout=PATIENCE)
    file, script, allowed = told.split()
    assert Path(file).is_relative_to(home)
    assert (int(script), allowed) == (len(SCRIPT), "True")


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=PATIENCE)

"""The package as a whole: its layers, its names, its documents, its wheel."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
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
from typing import Any

import pytest
from aiogram import Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from fakeredis import FakeAsyncRedis

import bot_ratelimit
from bot_ratelimit.algorithms.script import SCRIPT
from tests.guide import pages as guide
from tests.guide.stage import forget_metrics
from tests.servers import PATIENCE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bot_ratelimit"

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
KNOW_REDIS = ("config.settings", "storage.redis.")


@cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }


@cache
def imports() -> dict[str, set[str]]:
    """For each module, all that it imports at run time, anywhere in the file."""
    return {name: set(imported(tree)) for name, tree in modules().items()}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module
            submodules = (f"{node.module}.{alias.name}" for alias in node.names)
            found = [
                name for name in submodules if name.removeprefix("bot_ratelimit.") in modules()
            ]
            yield from found or [node.module]
        else:
            yield from imported(node)


def importers(package: str) -> set[str]:
    return {
        name
        for name, found in imports().items()
        if any(each.split(".")[0] == package for each in found)
    }


def room(module: str) -> str:
    """The file or folder of the package that contains a module."""
    return module.split(".")[0]


def own_imports() -> dict[str, set[str]]:
    """For each module, the modules of the package that it imports."""
    prefix = "bot_ratelimit."
    return {
        name: {each.removeprefix(prefix) for each in found if each.startswith(prefix)}
        for name, found in imports().items()
    }


def test_modules_import_only_downwards() -> None:
    """No module imports one of a layer above its own."""
    floor = {name: i for i, rooms in enumerate(FLOORS) for name in rooms}
    assert {room(name) for name in modules()} <= set(floor), "a module without a place in FLOORS"
    upward = [
        f"{name} imports {each}"
        for name, found in own_imports().items()
        for each in found
        if floor[room(each)] < floor[room(name)] or (room(name), room(each)) in STRANGERS
    ]
    assert upward == []


def test_there_are_no_import_cycles() -> None:
    """There are no cycles inside a layer either."""
    assert [*TopologicalSorter(own_imports()).static_order()]


def test_only_upper_layers_import_aiogram() -> None:
    """A limiter works without a bot."""
    assert {room(name) for name in importers("aiogram")} <= ABOVE_THE_LINE


def test_only_storages_and_settings_import_redis() -> None:
    """The storage uses redis-py, and the settings make a client."""
    assert [name for name in importers("redis") if not name.startswith(KNOW_REDIS)] == []


def mapped() -> set[str]:
    """The paths that ARCHITECTURE.md's code map names: `incoming/flags.py`, `admin/web/`."""
    _, code_map, *_ = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("```")
    found, folders = set(), [""]  # the folder of each indent
    for indent, names in re.findall(r"(?m)^((?:  )+)([\w./]+(?:, [\w./]+)*)(?= |$)", code_map):
        del folders[len(indent) // 2 :]
        for name in names.split(", "):
            suffix = "" if name.endswith(("/", ".lua")) else ".py"
            found.add(f"{folders[-1]}{name}{suffix}")
        folders.append(f"{folders[-1]}{names}")
    return found


def test_the_code_map_names_every_module() -> None:
    """ARCHITECTURE.md names each module, or its inner folder, and nothing that is not there."""
    named = mapped()
    assert {path for path in named if not (PACKAGE / path).exists()} == set()
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    shown = {str(Path(path).parent) + "/" for path in named}  # folders with their modules
    inner = tuple(path for path in named - shown if path.endswith("/"))  # admin/web/
    assert {each for each in modules if not each.startswith(inner)} <= named


# What users import from modules of their own, beside the package itself.
PUBLIC_ELSEWHERE = [
    "bot_ratelimit.admin.admin_app",
    "bot_ratelimit.admin.admin_router",
    "bot_ratelimit.admin.health.add_health",
    "bot_ratelimit.limiter.health.Health",
    "bot_ratelimit.metrics.PrometheusMetrics",
    "bot_ratelimit.outgoing.journal.Journal",
    "bot_ratelimit.outgoing.progress.Progress",
    "bot_ratelimit.outgoing.sent.Status",
    "bot_ratelimit.testing.Clock",
    "bot_ratelimit.testing.FlakyStorage",
]
METHODS = (
    *("hit", "peek", "acquire", "charge", "refund", "reset", "slot", "limit"),
    *("ban", "unban", "bans", "check", "statistics", "top_refused"),
)


def test_a_public_name_shows_how_it_is_used() -> None:
    """Its docstring has one sentence, then an example or a table; an example is valid Python."""
    for name in (
        *(f"bot_ratelimit.{name}" for name in bot_ratelimit.__all__),
        *(f"bot_ratelimit.Limiter.{name}" for name in METHODS),
        *PUBLIC_ELSEWHERE,
    ):
        value = resolve_name(name)
        if not callable(value):  # NEVER_REFUSED
            continue
        text = getdoc(value) or ""
        assert re.match(r".+[.:]$", text.partition("\n")[0]), name
        examples = re.findall(r"(?m)::\n\n((?:    .*\n|\n)+)", text + "\n")
        assert examples or "\n====" in text or "Attributes:" in text, name
        for example in examples:
            if name.rpartition(".")[2] not in {"LogObserver", "Journal", "ConfigError"}:  # output
                compile(dedent(example), name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_help_repeats_no_long_list() -> None:
    """`help()` shows the long list of what is never refused once at most."""
    text = render_doc(bot_ratelimit, renderer=plaintext)
    assert not [name for name in bot_ratelimit.NEVER_REFUSED if text.count(f"{name!r}") > 1]


def test_the_names_of_the_contract_are_public() -> None:
    """The promised names can be imported from the package itself."""
    fixed = "Algorithm ConfigError Decision Limit Limiter MemoryStorage RateLimitError \
        RateLimitMiddleware RedisStorage Rule Scope Settings StorageError Subject"
    assert set(fixed.split()) <= set(bot_ratelimit.__all__)
    assert sorted(bot_ratelimit.__all__) == sorted(set(bot_ratelimit.__all__))


# The Python blocks of a page run one after the other in one namespace, as a reader would type
# them; polling is cut short, and `await` may stand outside functions. A block that begins with
# "# not run" only has to compile. The blocks of some pages run alone, in tests/guide.
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {*guide.ALONE})
BLOCK = re.compile(r"^([ \t]*)```(?:python|py)\b[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, bool]]:
    """Each block, preceded by as many lines as in the page, and whether it is run."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        source = dedent(found[2])
        yield (
            "\n" * text.count("\n", 0, found.start(2)) + source,
            not source.startswith("# not run"),
        )


@pytest.fixture
def no_network(environment: pytest.MonkeyPatch) -> None:
    """A token, a Telegram that accepts everything and has no updates, and an embedded Redis."""

    async def nothing(*_: Any, **__: Any) -> bool:
        return True

    forget_metrics()
    environment.setenv("BOT_TOKEN", "42:TEST")
    environment.setattr(Dispatcher, "start_polling", nothing)
    environment.setattr(AiohttpSession, "make_request", nothing)
    environment.setattr("redis.asyncio.Redis", FakeAsyncRedis)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_in_the_documents_works(page: Path) -> None:
    """Code that is copied from the documents runs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for source, runs in blocks(page):
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(source, page, "exec", flags, dont_inherit=True)
            if runs:
                awaitable = eval(code, namespace)
                if awaitable is not None:
                    runner.run(awaitable)


def test_the_readme_shows_a_bot() -> None:
    """The README starts with a complete bot: at most 15 lines of code, before line 30."""
    source, runs = next(blocks(ROOT / "README.md"))
    assert runs
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
    assert len(source.splitlines()) < 30
    assert "RateLimitMiddleware" in source


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_the_readme_is_short(name: str) -> None:
    """The README can be read in one sitting: fewer than 150 lines."""
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 150


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the installed hatchling or by one that pip downloads."""
    directory = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    command = ["pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", directory, ROOT]
    subprocess.run([sys.executable, "-m", *command], check=True, timeout=PATIENCE)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_contains_the_package(wheel: Path) -> None:
    """Every module, script, template and `py.typed` is in the wheel, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    tree = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tree
    assert {"bot_ratelimit/py.typed", "bot_ratelimit/algorithms/frame.lua"} <= names
    assert {"METADATA", "LICENSE"} <= info


USE = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
import bot_ratelimit
from bot_ratelimit.algorithms.script import SCRIPT
limiter = bot_ratelimit.Limiter(bot_ratelimit.MemoryStorage())
decision = asyncio.run(limiter.hit("1/s", bot_ratelimit.Subject(user=42)))
print(json.dumps([bot_ratelimit.__file__, len(SCRIPT), decision.allowed]))
"""


def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, the package imports, finds its script and decides."""
    command = ["pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--no-index", "--target", tmp_path, wheel]
    subprocess.run([sys.executable, "-m", *command], check=True, timeout=PATIENCE)
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", USE, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
        timeout=PATIENCE,
    )
    file, script, allowed = json.loads(ran.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert script == len(SCRIPT)
    assert allowed

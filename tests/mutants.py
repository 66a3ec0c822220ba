"""`python -m tests.mutants`: how many small mistakes in the code the tests find.

Each mutant is one change: a comparison, an `and`, a sign, a result or a call. First the quick tests
run once, to learn which of them execute which line. A mutant is found if one of those that execute
its line fails or hangs, or else one of all tests of its folder. The status is 1 if fewer than nine
in ten are found. Read the others: some change nothing that anybody could notice.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

from coverage import CoverageData

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "bot_ratelimit"
FOLDERS: Final = ("limiter", "storage", "incoming")
GOAL: Final = 0.9
LONGEST: Final = 900.0
"""Seconds after which the tests are taken to hang."""
MANY: Final = 300
"""How many of the tests that execute a line run."""

OPPOSITES: Final[dict[type[ast.AST], str]] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.And: "or",
    ast.Or: "and",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
}


class Mutant(NamedTuple):
    """A change of one expression or statement."""

    path: Path
    node: ast.expr | ast.stmt
    new: str

    def __str__(self) -> str:
        place = f"{self.path.relative_to(ROOT)}:{self.node.lineno}"
        return f"{place}: {ast.unparse(self.node)}  ->  {self.new}"

    def apply(self, root: Path) -> None:
        """Write the changed file into a copy of the repository."""
        text = self.path.read_bytes()
        lines = text.splitlines(keepends=True)
        assert self.node.end_lineno is not None
        assert self.node.end_col_offset is not None
        first = sum(map(len, lines[: self.node.lineno - 1])) + self.node.col_offset
        last = sum(map(len, lines[: self.node.end_lineno - 1])) + self.node.end_col_offset
        changed = text[:first] + self.new.encode() + text[last:]
        (root / self.path.relative_to(ROOT)).write_bytes(changed)


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file; what is only said or typed is left alone."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and node.name in {"__repr__", "__str__"}:
            continue
        for name, value in ast.iter_fields(node):
            if name not in {"annotation", "returns", "bases", "type_params"}:
                found = value if isinstance(value, list) else [value]
                waiting += [each for each in found if isinstance(each, ast.AST)]
        if (new := changed(node)) is not None:
            assert isinstance(node, ast.expr | ast.stmt)
            yield Mutant(path, node, new)


def changed(node: ast.AST) -> str | None:
    """The mutated text of a node; None if it has none."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPPOSITES:
            return f"({ast.unparse(left)}) {OPPOSITES[type(op)]} ({ast.unparse(right)})"
        case ast.BoolOp(op=op, values=values):
            return f" {OPPOSITES[type(op)]} ".join(f"({ast.unparse(each)})" for each in values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPPOSITES:
            if is_text(left) or is_text(right):
                return None
            return f"({ast.unparse(left)}) {OPPOSITES[type(op)]} ({ast.unparse(right)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"bool({ast.unparse(operand)})"
        case ast.IfExp(test=test, body=body, orelse=other):
            return f"({ast.unparse(other)}) if {ast.unparse(test)} else ({ast.unparse(body)})"
        case ast.Constant(value=bool() as value):
            return str(not value)
        case ast.Expr(value=ast.Call() | ast.Await() as call) if "log" not in ast.unparse(call):
            return "pass"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            return "return None"
    return None


def is_text(node: ast.AST) -> bool:
    number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return isinstance(node, ast.Constant | ast.JoinedStr) and not number


class Tests:
    """The tests of some folders, and which of them execute which line.

    Args:
        root: A copy of the repository.
        folders: Those of the mutants.
        workers: How many processes run the tests once.
    """

    def __init__(self, root: Path, folders: Sequence[str], workers: int) -> None:
        self._covering: dict[tuple[Path, int], list[str]] = {}
        options = ["--quick", "-n", str(workers), "--cov=bot_ratelimit", "--cov-context=test"]
        paths = [f"tests/{each}" for each in folders]
        if not passes(root, [*options, "--cov-report=", "--maxfail=9", *paths]):
            sys.exit("the tests fail without a mutant")
        data = CoverageData(str(root / ".coverage"))
        data.read()
        for name in data.measured_files():
            for line, contexts in data.contexts_by_lineno(name).items():
                ids = {each.rpartition("|")[0] for each in contexts if each}
                self._covering[Path(name).relative_to(root), line] = sorted(ids)

    def find(self, mutant: Mutant, root: Path) -> bool:
        """Whether a test fails in this copy of the repository."""
        path = mutant.path.relative_to(ROOT)
        folder = f"tests/{path.parts[1]}"
        lines = range(mutant.node.lineno, (mutant.node.end_lineno or mutant.node.lineno) + 1)
        ids = dict.fromkeys(each for n in lines for each in self._covering.get((path, n), ()))
        # The tests of the same name come first, and then those of the same folder.
        likely = sorted(ids, key=lambda each: (path.stem not in each, folder not in each))
        first = likely[:MANY] or ["--quick", folder]
        return not (passes(root, first) and passes(root, [folder]))


def passes(root: Path, arguments: list[str]) -> bool:
    """Whether tests pass; if they hang, they do not."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run = partial(subprocess.run, cwd=root, env=environment, capture_output=True, timeout=LONGEST)
    try:
        return run(command).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def copy(root: Path) -> None:
    """Copy what git knows of."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)


def main() -> int:
    """Make mutants, run the tests on each, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="mutants at a time")
    given = parser.parse_args()
    paths = [path for each in given.folders for path in sorted((PACKAGE / each).rglob("*.py"))]
    every = [each for path in paths for each in mutants(path)]
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants, --seed {given.seed}", flush=True)
    missed: list[Mutant] = []
    with tempfile.TemporaryDirectory() as directory:
        roots: SimpleQueue[Path] = SimpleQueue()
        for number in range(given.workers):
            copy(root := Path(directory).resolve() / str(number))
            roots.put(root)
        tests = Tests(root, given.folders, given.workers)

        def try_one(mutant: Mutant) -> None:
            root, started = roots.get(), time.monotonic()
            mutant.apply(root)
            if not (ok := tests.find(mutant, root)):
                missed.append(mutant)
            shutil.copy(mutant.path, root / mutant.path.relative_to(ROOT))
            roots.put(root)
            took = time.monotonic() - started
            print(f"{'found' if ok else 'MISSED':<7}{took:4.0f} s  {mutant}", flush=True)

        with ThreadPoolExecutor(given.workers) as pool:
            list(pool.map(try_one, chosen))
    share = 1 - len(missed) / max(1, len(chosen))
    print(f"\n{share:.0%} found; missed:", *(map(str, missed) if missed else ["none"]), sep="\n  ")
    return int(share < GOAL)


if __name__ == "__main__":
    sys.exit(main())

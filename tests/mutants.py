"""`python -m tests.mutants`: how many small mistakes in the code the tests find.

Each mutant is a copy of the repository with one change: a comparison, an `and`, a sign, a result
or a call. It is found if a test fails or hangs; the quick tests of its folder run first, then all
tests. The status is 1 if fewer than nine in ten are found. Read the others: some change nothing
that anybody could notice.
"""

from __future__ import annotations

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "bot_ratelimit"
FOLDERS: Final = ("limiter", "storage", "incoming")
LEFT_OUT: Final = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
NEEDED: Final = (".env.example", ".ci", ".github", ".gitignore")
GOAL: Final = 0.9
LONGEST: Final = 900.0
"""Seconds after which the tests are taken to hang."""

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
                waiting += [
                    each
                    for each in ([*value] if isinstance(value, list) else [value])
                    if isinstance(each, ast.AST)
                ]
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
            if any(
                isinstance(each, ast.Constant | ast.JoinedStr) and not is_number(each)
                for each in (left, right)
            ):
                return None  # of texts
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


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def found(root: Path, folder: str, workers: str) -> bool:
    """Whether a test fails in this copy: first the quick ones of the folder, then all."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-n", workers, "--dist", "worksteal"]
    for part in (["--quick", f"tests/{folder}"], []):
        try:
            ran = subprocess.run(
                [*command, *part], cwd=root, capture_output=True, timeout=LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            return True
        if ran.returncode:
            return True
    return False


def copy(root: Path) -> None:
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    for name in NEEDED:
        if (source := ROOT / name).is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("tools"))
        else:
            shutil.copy(source, root / name)


def main() -> int:
    """Make mutants, run the tests on each, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--workers", default="auto")
    given = parser.parse_args()
    every = [
        each
        for folder in given.folders
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for each in mutants(path)
    ]
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants, --seed {given.seed}", flush=True)
    missed = []
    with tempfile.TemporaryDirectory() as directory:
        for number, each in enumerate(chosen):
            root, started = Path(directory) / str(number), time.monotonic()
            copy(root)
            each.apply(root)
            folder = each.path.relative_to(PACKAGE).parts[0]
            ok = found(root, folder, given.workers)
            if not ok:
                missed.append(each)
            took = time.monotonic() - started
            print(f"{'found' if ok else 'MISSED':<7}{took:4.0f} s  {each}", flush=True)
            shutil.rmtree(root)
    share = 1 - len(missed) / max(1, len(chosen))
    print(f"\n{share:.0%} found; missed:", *(missed or ["none"]), sep="\n  ")
    return int(share < GOAL)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.versions`: the suite on every Python found, with the lowest and newest versions.

Each combination has an environment of its own under `.venv-versions/`, made once and kept until
pyproject.toml changes. Arguments choose combinations by a part of their name: `3.11`, `lowest`.
`--resume` leaves out those that have passed at this commit, if nothing was changed since.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any, Final, NamedTuple

# Of tests/servers.py, which cannot be imported here: nothing is installed where this runs.
PREFER_BUNDLED: Final = "TESTS_PREFER_BUNDLED_SERVERS"

ROOT: Final = Path(__file__).parents[1]
HOME: Final = ROOT / ".venv-versions"
REQUIRED: Final = ("3.11", "3.12", "3.13")
LATER: Final = ("3.14", "3.15")
SYSTEM: Final = Path("/usr/bin/python3")

# Neither the lowest nor the newest: what else has to work.
MIDDLE: Final = {"redis": "==7.1.*"}
# They check the code and run nothing.
_CHECKERS: Final = ("mypy", "ruff", "types-", "basedpyright")


class Combination(NamedTuple):
    """A Python, and the versions of what it installs."""

    python: Path
    name: str
    pins: dict[str, str]


def main(arguments: list[str]) -> int:
    """Run the combinations, print their results, and return the exit status."""
    wanted = [word for word in arguments if word != "--resume"]
    resume, commit = "--resume" in arguments, clean_commit()
    pythons = dict(interpreters())
    chosen = [each for each in combinations(pythons) if all(word in each.name for word in wanted)]
    if not chosen:
        print(f"no combination has {' and '.join(wanted)} in its name")
        return 2
    results = []
    for each in chosen:
        passed, started = HOME / each.name / ".passed", time.monotonic()
        if resume and commit and passed.exists() and passed.read_text() == commit:
            result = "passed before"
        elif (result := run(each)) == "passed" and clean_commit() == commit:
            passed.write_text(commit)
        results.append((each.name, result, time.monotonic() - started))
    print(f"\n== versions, at {commit[:10] or 'a changed work tree'}")
    for name, result, seconds in results:
        print(f"{name:<16} {result}  ({seconds:.0f} s)")
    for version in REQUIRED:
        if version not in pythons:
            print(f"{version:<16} not found: install python{version}, or pyenv install {version}")
    return int(any(not result.startswith("passed") for _, result, _ in results))


def clean_commit() -> str:
    """The commit of the work tree; nothing if something in it was changed."""
    commit, changes = (
        subprocess.run(["git", *what], cwd=ROOT, capture_output=True, text=True, check=False)
        for what in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    return "" if commit.returncode or changes.stdout else commit.stdout.strip()


def interpreters() -> Iterator[tuple[str, Path]]:
    """Each Python by its version, from PATH or pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in REQUIRED + LATER:
        on_path = which(f"python{version}")
        places = [Path(on_path)] if on_path else []
        places += sorted(versions.glob(f"{version}.*/bin/python"), reverse=True)
        for place in places:
            if patch_release(place).startswith(f"{version}."):  # pyenv's shim may have none
                yield version, place
                break


def patch_release(python: Path) -> str:
    """Its version as `3.11.2`; empty if it is not there, or can make no environment."""
    if not python.exists():
        return ""
    says = "import ensurepip, sys; print('%d.%d.%d' % sys.version_info[:3])"
    ran = subprocess.run([python, "-c", says], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def combinations(pythons: dict[str, Path]) -> Iterator[Combination]:
    """Every Python with the lowest and the newest versions, and the first with those between.

    At last the Python of the system, if it is another patch release than all of them.
    """
    for number, (version, python) in enumerate(pythons.items()):
        yield Combination(python, f"{version}-lowest", lowest())
        if number == 0:
            yield Combination(python, f"{version}-middle", MIDDLE)
        yield Combination(python, f"{version}-newest", {})
    system = patch_release(SYSTEM)
    supported = system.rpartition(".")[0] in REQUIRED + LATER
    if supported and system not in map(patch_release, pythons.values()):
        yield Combination(SYSTEM, f"{system}-newest", {})


def lowest() -> dict[str, str]:
    """The lower bounds that pyproject.toml declares, as exact versions."""
    declared: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = declared["project"]
    groups = [*project["optional-dependencies"].values(), declared["dependency-groups"]["dev"]]
    found = {}
    for requirement in (*project["dependencies"], *(each for group in groups for each in group)):
        match = re.match(r"([\w-]+)(?:\[[\w-]+\])?>=([\d.]+)", requirement)
        if match and not match[1].startswith(_CHECKERS):
            found[match[1]] = f"=={match[2]}"
    return found


def run(combination: Combination) -> str:
    """Install and test one combination; return the result in a few words."""
    print(f"\n== {combination.name}", flush=True)
    home = HOME / combination.name
    python = str(home / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ready, project = home / ".ready", (ROOT / "pyproject.toml").read_bytes()
    if not ready.exists() or ready.read_bytes() != project:
        pins = HOME / f"{combination.name}.txt"
        HOME.mkdir(exist_ok=True)
        pins.write_text("".join(f"{name}{version}\n" for name, version in combination.pins.items()))
        what = ["--editable", ".[admin,cli,demo]", "--group", "dev"]
        for command in (
            [str(combination.python), "-m", "venv", "--clear", str(home)],
            [*pip, "install", "--upgrade", "pip"],
            [*pip, "install", "--constraint", str(pins), *what],
        ):
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                return "NOT INSTALLED"
        ready.write_bytes(project)
    versions = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout
    named = r"(?m)^(?:aiogram|redis|pydantic|pydantic-settings|cachetools|fakeredis)==\S+"
    print(*re.findall(named, versions), sep=", ", flush=True)
    suite = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    suite += ["-n", "auto", "--dist", "worksteal"]
    lowest_servers = {PREFER_BUNDLED: "1"} if combination.name.endswith("lowest") else {}
    environment = {**os.environ, **lowest_servers}
    code = subprocess.run(suite, cwd=ROOT, env=environment, check=False).returncode
    return "passed" if code == 0 else f"FAILED (exit status {code})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

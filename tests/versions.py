"""`python -m tests.versions`: the suite on every Python found, with the lowest and newest versions.

Each combination has an environment of its own under `.venv-versions/`, made once and kept until
pyproject.toml changes. Arguments choose combinations by a part of their name: `3.11`, `lowest`.
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

ROOT: Final = Path(__file__).parents[1]
HOME: Final = ROOT / ".venv-versions"
REQUIRED: Final = ("3.11", "3.12", "3.13")
LATER: Final = ("3.14", "3.15")

# Neither the lowest nor the newest: what else has to work.
MIDDLE: Final = {"redis": "==7.1.*"}
# They check the code and run nothing.
_CHECKERS: Final = ("mypy", "ruff", "types-", "basedpyright")


class Combination(NamedTuple):
    """A Python, and the versions of what it installs."""

    python: Path
    name: str
    pins: dict[str, str]


def main(wanted: list[str]) -> int:
    """Run the combinations, print their results, and return the exit status."""
    pythons = dict(interpreters())
    results = []
    for each in combinations(pythons):
        if all(word in each.name for word in wanted):
            started = time.monotonic()
            results.append((each.name, run(each), time.monotonic() - started))
    print("\n== versions")
    for name, result, seconds in results:
        print(f"{name:<16} {result}  ({seconds:.0f} s)")
    for version in REQUIRED:
        if version not in pythons:
            print(f"{version:<16} not found: install python{version}, or pyenv install {version}")
    return int(any(not result.startswith("passed") for _, result, _ in results))


def interpreters() -> Iterator[tuple[str, Path]]:
    """Each Python by its version, from PATH or pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in REQUIRED + LATER:
        on_path = which(f"python{version}")
        places = [Path(on_path)] if on_path else []
        places += sorted(versions.glob(f"{version}.*/bin/python"), reverse=True)
        for place in places:
            says = [place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            found = subprocess.run(says, capture_output=True, text=True, check=False)
            if found.stdout.strip() == version:  # a shim of pyenv may stand for nothing
                yield version, place
                break


def combinations(pythons: dict[str, Path]) -> Iterator[Combination]:
    """Every Python with the lowest and the newest versions, and the first with those between."""
    for number, (version, python) in enumerate(pythons.items()):
        yield Combination(python, f"{version}-lowest", lowest())
        if number == 0:
            yield Combination(python, f"{version}-middle", MIDDLE)
        yield Combination(python, f"{version}-newest", {})


def lowest() -> dict[str, str]:
    """The lower bounds that pyproject.toml declares, as exact versions."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [
        *project["project"]["dependencies"],
        *(each for extra in project["project"]["optional-dependencies"].values() for each in extra),
        *(each for each in project["dependency-groups"]["dev"] if isinstance(each, str)),
    ]
    found = {}
    for requirement in declared:
        match = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement)
        if match and not match[1].startswith(_CHECKERS):
            found[match[1]] = f"=={match[2]}"
    return found


def run(combination: Combination) -> str:
    """Install and test one combination; return the result in a few words."""
    print(f"\n== {combination.name}", flush=True)
    home = HOME / combination.name
    pip = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ready, project = home / ".ready", (ROOT / "pyproject.toml").read_bytes()
    if not ready.exists() or ready.read_bytes() != project:
        pins = HOME / f"{combination.name}.txt"
        HOME.mkdir(exist_ok=True)
        pins.write_text("".join(f"{name}{version}\n" for name, version in combination.pins.items()))
        making = [combination.python, "-m", "venv", "--clear", home]
        installing = [
            *pip,
            "install",
            "--constraint",
            pins,
            "--editable",
            ".[admin,cli,demo]",
            *groups(),
        ]
        for command in (making, [*pip, "install", "--upgrade", "pip"], installing):
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                return "NOT INSTALLED"
        ready.write_bytes(project)
    versions = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True)
    named = r"(?m)^(aiogram|redis|pydantic|pydantic-settings|cachetools|fakeredis)==\S+"
    print(", ".join(match[0] for match in re.finditer(named, versions.stdout)), flush=True)
    suite = [home / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    code = subprocess.run(suite, cwd=ROOT, check=False).returncode
    return "passed" if code == 0 else f"FAILED (exit status {code})"


def groups() -> list[str]:
    """pip arguments for the test tools."""
    return ["--group", "dev"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

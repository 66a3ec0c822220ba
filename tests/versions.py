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


def main(wanted: list[str]) -> int:
    """Run the combinations, print their results, and return the exit status."""
    pythons = dict(interpreters())
    chosen = [each for each in combinations(pythons) if all(word in each.name for word in wanted)]
    if not chosen:
        print(f"no combination has {' and '.join(wanted)} in its name")
        return 2
    results = {each.name: run(each) for each in chosen}
    print("\n== versions")
    for name, result in results.items():
        print(f"{name:<16} {result}")
    for version in REQUIRED:
        if version not in pythons:
            print(f"{version:<16} not found: install python{version}, or pyenv install {version}")
    return int(any(not result.startswith("passed") for result in results.values()))


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
    options = ["-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "worksteal"]
    lowest_servers = {PREFER_BUNDLED: "1"} if combination.name.endswith("lowest") else {}
    environment = {**os.environ, **lowest_servers}
    started = time.monotonic()
    code = subprocess.run(
        [python, "-m", "pytest", *options], cwd=ROOT, env=environment, check=False
    ).returncode
    result = "FAILED" if code else "passed"
    return f"{result}  (exit status {code}, {time.monotonic() - started:.0f} s)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Promises of ARCHITECTURE.md that a machine can check: who imports whom, what the front loads, what is where."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONTRACTS = ROOT / ".importlinter"

TOP_LEVEL = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "CITATION.cff",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    ".ci/run",
    ".importlinter",
    "gadgets/inrecon/stream.py",
    "server/inrecon_server/server.py",
    "hyperparams/README.md",
    "hyperparams/default.yaml",
    "hyperparams/protocols",
    "docker",
    "tests/inrecon",
    "tests/inrecon_server",
    "tests/e2e",
    "tests/benchmarks",
]


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return run_python("-c", command, "--no-logo", "--no-cache", "--config", str(config))


def test_import_contracts_are_kept() -> None:
    result = lint_imports(CONTRACTS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_a_broken_contract_is_noticed(tmp_path: Path) -> None:
    upside_down = tmp_path / "contracts.ini"
    upside_down.write_text(
        "[importlinter]\nroot_packages =\n    inrecon\n"
        "[importlinter:contract:upside-down]\nname = nouns above stream\ntype = layers\n"
        "layers =\n    inrecon.frame\n    inrecon.stream\n"
    )
    result = lint_imports(upside_down)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 broken" in result.stdout


def test_every_room_is_under_a_contract() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(CONTRACTS)
    layered = set(re.findall(r"inrecon\.(\w+)", contracts["importlinter:contract:layers"]["layers"]))
    package = ROOT / "gadgets" / "inrecon"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    # meta is the second half of image, which alone may import it.
    assert rooms - {"__init__", "meta"} == layered


@pytest.mark.parametrize(
    "module",
    [
        "inrecon",
        "inrecon.acquire",
        "inrecon.image",
        "inrecon_server.protocol",
        "inrecon_server.config",
        "inrecon_server.client",
        "inrecon_server.server",
    ],
)
def test_the_front_process_loads_no_torch(module: str) -> None:
    heavy = ["torch", "torchkbnufft", "matplotlib", "skimage", "scipy"]
    program = f"import sys, {module}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", TOP_LEVEL)
def test_the_layout_is_the_one_described(path: str) -> None:
    assert (ROOT / path).exists()


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()


def test_every_dependency_is_pinned_to_a_version_that_is_allowed() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {pin.name: pin for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    assert all(re.fullmatch(r"==[0-9.]+(post[0-9]+)?", str(pin.specifier)) for pin in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["demo"], *extras["dev"]):
        requirement = Requirement(text)
        if requirement.name != "inrecon":
            pinned = str(pins[canonicalize_name(requirement.name)].specifier).removeprefix("==")
            assert requirement.specifier.contains(pinned), text

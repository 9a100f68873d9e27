"""Keeps the arrows between the packages, and heavy libraries out of the light ones."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import HANG_S

pytestmark = pytest.mark.checks

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "learner", "sim_bridge", "deploy")
FLOOR = ("agent.process", "agent.durable")  # light, and below all
# package -> what it may import of ours besides itself, as module prefixes
ALLOWED = {
    "agent": (),
    "learner": ("agent",),
    "sim_bridge": ("agent.wire", "agent.episode", *FLOOR),
    "deploy": FLOOR,
}
HEAVY = ("torch", "transformers", "peft", "hydra", "omegaconf", "matplotlib", "mujoco")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            assert node.module is not None
            yield node.module


def is_under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    allowed = (package, *ALLOWED[package])
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in SOURCES
        if path.is_relative_to(ROOT / package)
        for module in imported_modules(path)
        if any(is_under(module, name) for name in PACKAGES)
        and not any(is_under(module, name) for name in allowed)
    ]
    assert wrong == []


def test_only_the_wire_uses_zmq_in_the_agent() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.is_relative_to(ROOT / "agent")
        for module in imported_modules(path)
        if is_under(module, "zmq")
    }
    names = ("sockets", "keys", "curve", "admission", "handshake", "connections", "monitor")
    assert users == {f"agent/wire/{name}.py" for name in names}


def test_one_module_imports_the_libraries_that_import_whatever_is_installed() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for module in imported_modules(path)
        if any(is_under(module, name) for name in ("transformers", "peft", "huggingface_hub"))
    }
    assert users == {"agent/model/libraries.py"}


def test_nothing_unpickles() -> None:
    forbidden = ("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib")
    users = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for module in imported_modules(path)
        if module.split(".")[0] in forbidden
    ]
    assert users == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    names = ("utils", "util", "common", "helpers", "misc")
    assert [str(path) for path in SOURCES if path.stem in names or path.parent.name in names] == []


@pytest.mark.parametrize(
    "module",
    [
        "agent.process",
        "agent.process.instruction",
        "agent.process.changes",
        "agent.wire.messages",
        "agent.wire.codec",
        "agent.wire.sockets",
        "agent.episode",
        "agent.adapters",
        "sim_bridge.__main__",
        "sim_bridge.probe",
        "sim_bridge.worker",
        "sim_bridge.suites",
        "sim_bridge.toy",
        "deploy.local.cli",
        "deploy.local.supervisor",
        "deploy.local.report",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(HEAVY) & {name.split(".")[0] for name in done.stdout.split()} == set()


def test_the_floor_rests_on_nothing_of_ours() -> None:
    floor = ROOT / "agent" / "process"
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in SOURCES
        if path.is_relative_to(floor)
        for module in imported_modules(path)
        if any(is_under(module, name) for name in PACKAGES)
        and not is_under(module, "agent.process")
    ]
    assert wrong == []

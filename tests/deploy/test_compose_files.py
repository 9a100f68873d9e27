"""Dockerfile, compose files and their scripts by the linters of their kind, without an engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import HANG_S

pytestmark = pytest.mark.checks

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
OVERRIDES = ("compose.robot.yaml", "compose.dev.yaml")


def run(program: str, *words: object) -> str:
    """What a linter of the development extra says; fails the test if it finds anything."""
    path = BIN / program
    if not path.exists():
        why = f"{program} is not installed: pip install '.[dev]'"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    done = subprocess.run([path, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=HANG_S, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def composed(*files: str) -> dict[str, Any]:
    """The compose model of the files, with every default filled in."""
    words = [word for name in ("compose.yaml", *files) for word in ("-f", DEPLOY / name)]
    text = run("docker-compose", *words, "--profile", "*", "config", "--format", "json")
    model: dict[str, Any] = json.loads(text)
    return model


def test_hadolint_has_nothing_to_say() -> None:
    assert run("hadolint", "Dockerfile") == ""


def test_shellcheck_has_nothing_to_say() -> None:
    assert run("shellcheck", ".ci/run", ".ci/containers", ".ci/stand-ins") == ""


def test_compose_files_keep_the_schema() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec",
        *(DEPLOY / name for name in ("compose.yaml", *OVERRIDES)))  # fmt: skip


@pytest.mark.parametrize("files", [(), *((name,) for name in OVERRIDES)])
def test_every_service_is_hardened(files: tuple[str, ...]) -> None:
    for name, service in composed(*files)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        limits = service["deploy"]["resources"]["limits"]
        assert int(limits["memory"]) > 0, name
        assert limits["pids"] > 0, name
        assert any(mount.startswith("/tmp") for mount in service["tmpfs"]), name


def test_nothing_is_published_beyond_this_machine() -> None:
    for name, service in composed()["services"].items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_everything_worth_keeping_is_in_a_named_volume() -> None:
    model = composed()
    for name, service in model["services"].items():
        for mount in service["volumes"]:
            if mount["type"] == "bind":
                assert mount["read_only"], f"{name}: {mount['target']}"
            else:
                assert mount["source"] in model["volumes"]


def test_no_setting_of_a_service_is_a_secret() -> None:
    """What stands in the environment is seen by everybody who may inspect a container."""
    for name, service in composed()["services"].items():
        for key in service.get("environment", {}):
            assert not re.search("PASSWORD|SECRET|TOKEN|KEY", key), f"{name}: {key}"


def test_the_tests_use_the_images_that_compose_names() -> None:
    text = (DEPLOY / "compose.yaml").read_text() + (ROOT / "Dockerfile").read_text()
    text = text.replace("${PYTHON_VERSION}", "3.11")
    tested = re.findall(r"[a-z/]+:v?\d[\w.-]+", (ROOT / ".ci" / "containers").read_text())
    assert len(tested) >= 4
    assert [image for image in tested if image not in text] == []

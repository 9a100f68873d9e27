"""The systemd units: nothing that systemd would ignore or complain of, and little exposure."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from patience import HANG_S

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
AGENT, LEARNER = "perennial-agent.service", "perennial-learner.service"
SIM, ROBOT = "perennial-sim@.service", "perennial-robot.service"
INSTANCES = [AGENT, LEARNER, "perennial-sim@1.service", ROBOT, "perennial.slice"]
PROGRAMS = ("perennial", "python")
# What the units lean on; the host's own copies would make the result depend on the host.
TARGETS = ("sysinit", "basic", "shutdown", "multi-user", "network-online", "time-sync")
# Of 100; a service without hardening has 96. A robot's client needs devices and priorities.
EXPOSURE_LIMITS = {AGENT: 16, LEARNER: 15, SIM: 16, f"robot/{ROBOT}": 23}

pytestmark = [
    pytest.mark.checks,
    pytest.mark.skipif(
        shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true",
        reason="systemd-analyze is not installed",
    ),
]


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=HANG_S, check=False
    )


def install(root: Path, *, robot: bool) -> Path:
    """A file system of the units and what they name; returns the folder of the units."""
    system = root / "etc/systemd/system"
    system.mkdir(parents=True)
    for unit in [*UNITS.glob("*.s*"), *UNITS.glob("robot/*.service")]:
        if unit.is_file():
            shutil.copy(unit, system)
    if robot:
        shutil.copytree(UNITS / "robot/perennial-agent.service.d", system / f"{AGENT}.d")
    for target in TARGETS:
        (system / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    folder = root / "opt/perennial/bin"
    folder.mkdir(parents=True)
    for program in PROGRAMS:
        (folder / program).write_text("#!/bin/sh\n")
        (folder / program).chmod(0o755)
    return system


def verify(root: Path) -> str:
    """What `systemd-analyze verify` has to say about all units."""
    done = analyze("verify", "--man=no", f"--root={root}", *INSTANCES)
    return done.stdout + done.stderr


@pytest.mark.parametrize("robot", [False, True], ids=["plain", "robot"])
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path, robot: bool) -> None:
    install(tmp_path, robot=robot)
    assert verify(tmp_path) == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("WatchdogSec", "WatchDogSec", "Unknown key"),
        ("Restart=on-failure", "Restart=on-fail", "Failed to parse"),
        ("bin/perennial", "bin/perenial", "not executable"),
        ("MemoryMax=70%", "MemoryMax=7 elephants", "Invalid memory limit"),
    ],
)
def test_the_check_bites(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    unit = install(tmp_path, robot=False) / AGENT
    text = unit.read_text()
    assert old in text
    unit.write_text(text.replace(old, new))
    assert complaint in verify(tmp_path)


@pytest.mark.parametrize(("name", "limit"), EXPOSURE_LIMITS.items())
def test_the_units_are_hardly_exposed(name: str, limit: int) -> None:
    done = analyze("security", "--offline=true", f"--threshold={limit}", str(UNITS / name))
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr


def test_users_and_folders_are_made(tmp_path: Path) -> None:
    for kind in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(UNITS / kind, tmp_path / "etc" / kind)
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^perennial:.*:/var/lib/perennial:.*nologin$",
        (tmp_path / "etc/passwd").read_text(),
        re.MULTILINE,
    )
    if os.geteuid() != 0:
        return  # the folders belong to another user
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    keys = (tmp_path / "etc/perennial/keys").stat()
    assert (keys.st_mode & 0o777, keys.st_uid != 0) == (0o700, True)


@pytest.mark.parametrize("name", [AGENT, LEARNER, SIM])
def test_a_unit_runs_a_command_that_exists_on_settings_that_setup_writes(name: str) -> None:
    from deploy.local.cli import COMMANDS

    (command,) = re.findall(r"^ExecStart=(.*)$", (UNITS / name).read_text(), re.MULTILINE)
    program, word, option, path = command.split()
    assert program == "/opt/perennial/bin/perennial"
    assert word in COMMANDS
    assert option == "--config"
    assert re.fullmatch(r"/var/lib/perennial/config/(agent|learner|sim)\.yaml", path)


def test_a_service_sees_its_own_key_and_nobody_elses() -> None:
    for name, own in ((AGENT, "agent"), (LEARNER, "learner"), (SIM, "sim")):
        service = read_service(name)
        assert "/etc/perennial/keys:ro" in service["TemporaryFileSystem"].split()
        keys = [path for path in service["BindReadOnlyPaths"].split() if "/keys/" in path]
        assert keys == [f"/etc/perennial/keys/{own}"]


def read_service(name: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser["Service"]

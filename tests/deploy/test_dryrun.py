"""`perennial dry-run`: every preset, without a checkpoint."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from patience import HANG_S

from agent.__main__ import main as agent_main
from deploy.local import dryrun
from deploy.local.composition import CONFIGS
from deploy.local.placement import BadSetting
from deploy.local.processes import module_command, module_environment
from sim_bridge.__main__ import main as sim_main

DOCUMENT = CONFIGS.parent / "docs" / "presets.md"
PRESETS = sorted(path.stem for path in (CONFIGS / "preset").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_before_there_is_a_checkpoint(preset: str) -> None:
    config, published = dryrun.compose_dry([f"preset={preset}"])
    assert published
    assert config.settings.run_dir.name == f"{preset}-seed0"
    assert config.processes["learner"]["dtype"] == "bfloat16"


def test_a_folder_that_is_given_must_be_there() -> None:
    with pytest.raises(BadSetting, match=r"no config\.json in /nowhere"):
        dryrun.compose_dry(["preset=crl-vla", "model.model_dir=/nowhere"])


def test_only_the_7b_has_a_geometry_without_its_folder() -> None:
    with pytest.raises(BadSetting, match=r"model\.model_dir has no default"):
        dryrun.compose_dry(["model=micro"])
    config, published = dryrun.compose_dry(["seed=3"])
    assert not published
    assert config.processes["learner"]["model_dir"].endswith("agent/assets/nano")


def test_a_typo_is_named() -> None:
    with pytest.raises(BadSetting, match="did you mean 'vlacrl-long'"):
        dryrun.compose_dry(["preset=vlacrl-lon"])


def test_a_check_judges_the_settings_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, good, bad in (
        (agent_main, {"max_batch": 4}, {"max_batch": 0}),
        (sim_main, {"envs": 2}, {"envs": 0}),
    ):
        path = tmp_path / "settings.yaml"
        path.write_text(json.dumps(good))
        assert main(["--config", str(path), "--check"]) == 0
        path.write_text(json.dumps(bad))
        assert main(["--config", str(path), "--check"]) == 2
        assert next(iter(bad)) in capsys.readouterr().err


def run_dry(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        module_command("deploy.local.dryrun", words),
        env=module_environment(1),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


@pytest.mark.slow
def test_the_paper_is_described_with_its_figures_as_documented() -> None:
    done = run_dry("preset=vlacrl-spatial", "workers=64", "--gpu=h100")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert f"```\n{text}```\n" in DOCUMENT.read_text(encoding="utf-8")
    assert "settings: agent, learner, sim-0 fit their schemas" in text
    for figure in ("7,541,237,184", "109,126,400"):
        assert figure in text
    # Five tasks, ten iterations, 1,024 episodes; six rows of ten tasks, 300 each; 64 chunks.
    assert re.search(r"episodes +51,200 +18,000", text)
    assert re.search(r"environment steps +26,214,400 +9,216,000", text)
    assert re.search(r"chunks served +3,276,800 +1,152,000", text)
    assert re.search(r"optimiser steps +400 ", text)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rl4vla-ppo", "crl-vla"])
def test_other_networks_and_critics_are_described(preset: str) -> None:
    done = run_dry(f"preset={preset}", "--gpu=4090", "--mean-steps=100")
    assert done.returncode == 0, done.stderr
    critics = {"rl4vla-ppo": "2,163,456", "crl-vla": "4,260,608"}  # H - 512 - 128 - 1; 2 H - ...
    assert re.search(rf"critic +{critics[preset]}  counted, trained", done.stdout)
    assert "RTX 4090, 24 GB: fits one process each" in done.stdout


@pytest.mark.slow
def test_a_setting_that_a_process_refuses_ends_it() -> None:
    done = run_dry("preset=crl-vla", "learner.algorithm.group_size=1")
    assert done.returncode == 2
    assert "algorithm.group_size: expected 2" in done.stderr
    assert "GPU" not in done.stdout

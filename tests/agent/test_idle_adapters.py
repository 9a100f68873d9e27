"""An adapter that changes nothing is the base under another name, and is called so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from adapter_fixtures import train_fake_adapter
from model_fixtures import tiny_model

from agent.config import AgentConfig
from agent.model.lora import attach_lora, changes_nothing, read_adapter, save_adapter
from agent.model.policy_model import load_policy_model
from agent.process import load_config
from agent.vla_policy import VlaPolicy
from agent.wire.errors import ConfigError
from learner.given import scaled_files


def no_alpha(folder: Path) -> None:
    train_fake_adapter(folder, 2, 4.0, seed=0)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 0}))


def no_b(folder: Path) -> None:
    save_adapter(attach_lora(tiny_model(), 2, 4.0), folder)


@pytest.mark.parametrize("write", [no_alpha, no_b])
def test_nothing_is_measured_in_the_name_of_an_adapter(tmp_path: Path, write) -> None:
    write(tmp_path / "idle")
    assert changes_nothing(*read_adapter(tmp_path / "idle"))
    with pytest.raises(ConfigError, match=r"start_adapter: .* changes nothing"):
        scaled_files(tmp_path / "idle", 1.0)
    train_fake_adapter(tmp_path / "trained", 2, 4.0, seed=0)
    assert not changes_nothing(*read_adapter(tmp_path / "trained"))
    assert scaled_files(tmp_path / "trained", 0.0)  # the scale 0 is asked for: it is the base


def test_the_server_says_that_a_version_is_idle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_policy_model("", {}, ("agentview", "wrist"), "tabletop")
    torch.manual_seed(0)
    save_adapter(attach_lora(model.network, 2, 4.0), tmp_path)
    fresh = load_policy_model("", {}, ("agentview", "wrist"), "tabletop")
    policy = VlaPolicy(fresh, micro_batch=1, adapter_slots=3, adapter_rank=4)
    with caplog.at_level(logging.WARNING):
        policy.stage("v00001-idle", tmp_path)
    assert "v00001-idle changes nothing" in caplog.text


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_setting_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"latency_budget_s: {value}\n")
    with pytest.raises(ConfigError, match=r"latency_budget_s: expected a (finite )?number"):
        load_config(AgentConfig, path, [])

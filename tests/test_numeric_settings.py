"""Every number among the settings has limits, or says here why it has none.

The schemas are walked: a new setting is tried with the rest, and a nonsense value that it takes
must be listed with its reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from pathlib import Path

import pytest

from agent.process import load_config
from agent.process.checks import require_range
from agent.process.errors import ConfigError
from deploy.local.placement import BadSetting
from deploy.local.settings import RunSettings, Threads, compose_run

ROOT = Path(__file__).parents[1]
MODULES = (
    "agent.config",
    "learner.config",
    "learner.algorithm_config",
    "learner.continual.settings",
    "learner.nano",
    "learner.to_discrete",
    "sim_bridge.config",
    "sim_bridge.robots.config",
)
NEGATIVE_MEANS = {
    "LimitsConfig.low": "a place in the robot's coordinates",
    "LimitsConfig.high": "a place in the robot's coordinates",
    "LimitsConfig.box_low_m": "a place in the robot's coordinates",
    "LimitsConfig.box_high_m": "a place in the robot's coordinates",
    "RestConfig.home": "a place in the robot's coordinates",
    "RestConfig.hold_action": "an action in the robot's units",
}
ZERO_MEANS = NEGATIVE_MEANS | {
    "AgentConfig.max_wait_s": "a batch waits for nobody",
    "AgentConfig.http_port": "any free one",
    "AgentConfig.keep_eval_images_per_task": "none is kept",
    "LearnerConfig.start_adapter_scale": "the base",
    "LearnerConfig.temperature": "greedy, which evaluates alone",
    "LearnerConfig.seed": "a seed like others",
    "LearnerConfig.logprob_tolerance": "equal to the bit",
    "LearnerConfig.http_port": "any free one",
    "LearnerConfig.last_row": "the base's row alone",
    "SuiteConfig.train_init_states": "a protocol that trains nothing",
    "RoundingConfig.trusted_p99": "always corrected",
    "RoundingConfig.refused_p99": "anything but equality is refused",
    "AlgorithmConfig.iterations_per_task": "the base is measured alone",
    "AlgorithmConfig.max_episodes_per_task": "no such limit",
    "AlgorithmConfig.resample_degenerate": "none is drawn again",
    "AlgorithmConfig.learning_rate": "a control in which nothing is learned",
    "AlgorithmConfig.weight_decay": "none",
    "PpoConfig.gamma": "only the chunk's own reward counts",
    "PpoConfig.gae_lambda": "one-step advantages",
    "PpoConfig.value_lr": "a control whose critic learns nothing",
    "PpoConfig.value_coef": "the value loss leaves the adapter alone",
    "AsyncConfig.staleness": "acting waits for learning",
    "EwcConfig.weight": "a control without the penalty",
    "RetainConfig.coefficient": "no update is merged",
    "SlcaConfig.trunk_factor": "the trunk stays",
    "ErConfig.weight": "a control without the memory",
    "DerConfig.weight": "a control without the memory",
    "CrlVlaConfig.kl_weight": "a control without the term",
    "CrlVlaConfig.value_weight": "a control without the term",
    "ConversionSettings.seed": "a seed like others",
    "ConversionSettings.warmup_steps": "none",
    "SimConfig.idle_exit_s": "leave at the first look without a lease",
    "RobotConfig.episodes": "until SIGTERM",
    "RobotConfig.lead_ticks": "the robot stands still meanwhile",
    "RobotConfig.blend_ticks": "nothing is blended",
    "LimitsConfig.metres_per_unit": "there is no box",
    "Ros2Config.domain": "ROS's default domain",
    "Ros2Topic.size": "a topic that is no array",
}
LEFT_OUT = {
    "learner.continual.settings.ReplayConfig",  # its heirs are tried
    "agent.config.TaskConfig",  # has no number, and the learner's has its name
}
# What a schema wants besides, so that the number under trial is what it is refused for.
BESIDES = {
    "RobotConfig": ["task=x"],
    "ConversionSettings": ["demos=[x]"],
    "RoundingConfig": ["trusted_p99=0"],
    "LearnerConfig": [
        "start_adapter=x",
        "suite.tasks=[{slug: a, instruction: go left, horizon_steps: 5}]",
        "suite.train_tasks=[a]",
        "algorithm.iterations_per_task=0",
    ],
}
# Checked where it is part of a whole, which names it better.
WHOLE = {
    "TaskConfig.horizon_steps": ("LearnerConfig", "suite.tasks=[{{slug: a, instruction: go left, "
                                 "horizon_steps: {}}}]"),
    "SuiteConfig.train_init_states": ("LearnerConfig", "suite.train_init_states={}"),
    "SuiteConfig.eval_init_states": ("LearnerConfig", "suite.eval_init_states={}"),
    "Ros2Topic.size": ("RobotConfig", "ros2.position.size={}"),
}  # fmt: skip
SECTIONS = {"LimitsConfig": "limits", "RestConfig": "rest", "Ros2Config": "ros2"}  # of a robot


def schemas() -> dict[str, type]:
    found: dict[str, type] = {}
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            if not isinstance(value, type) or not dataclasses.is_dataclass(value):
                continue
            if value.__module__ == name and f"{name}.{value.__name__}" not in LEFT_OUT:
                found[value.__name__] = value
    return found


SCHEMAS = schemas()


def kinds(hint: object) -> set[object]:
    """The types in an annotation: `list[float] | None` has list, float and None."""
    inner = typing.get_args(hint)
    origin = typing.get_origin(hint)
    own = {origin or hint} - {types.UnionType, typing.Union}
    return own.union(*map(kinds, inner)) if inner else own


def numbers() -> dict[str, bool]:
    """Schema.field of every number, and whether it is a list of them."""
    found = {}
    for name, schema in SCHEMAS.items():
        for field, hint in typing.get_type_hints(schema).items():
            if kinds(hint) & {int, float} and dict not in kinds(hint):
                found[f"{name}.{field}"] = list in kinds(hint)
    return found


NUMBERS = numbers()


def load(name: str, text: str) -> None:
    schema, field = name.split(".")
    template = f"{field}=[{{}}]" if NUMBERS[name] else f"{field}={{}}"
    if schema in SECTIONS:
        schema, template = "RobotConfig", f"{SECTIONS[schema]}.{template}"
    schema, template = WHOLE.get(name, (schema, template))
    load_config(SCHEMAS[schema], None, [*BESIDES.get(schema, []), template.format(text)])


def test_the_walk_meets_every_schema() -> None:
    assert len(NUMBERS) > 90
    for name in ("RobotConfig.rate_hz", "LimitsConfig.step", "PpoConfig.hidden_sizes"):
        assert name in NUMBERS
    assert set(ZERO_MEANS) <= set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_limits(name: str) -> None:
    refused = ["true", "yes", "1e300", "nan", "inf", "'1 s'"]
    refused += [] if name in NEGATIVE_MEANS else ["-1"]
    refused += [] if name in ZERO_MEANS else ["0"]
    for text in refused:
        with pytest.raises(ConfigError) as refusal:
            load(name, text)
        assert name.split(".")[1] in str(refusal.value), text
        assert "OmegaConf" not in str(refusal.value)
    for text in ["-1"] * (name in NEGATIVE_MEANS) + ["0"] * (name in ZERO_MEANS):
        load(name, text)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_truth_value_in_a_file_is_no_number(name: str, tmp_path: Path) -> None:
    schema, field = name.split(".")
    path = tmp_path / "settings.yaml"
    path.write_text(f"{field}: {'[true]' if NUMBERS[name] else 'true'}\n")
    with pytest.raises(ConfigError, match=field) as refusal:
        load_config(SCHEMAS[schema], path, BESIDES.get(schema, []))
    assert "could not be converted" not in str(refusal.value)


@pytest.mark.parametrize("value", [True, False, "3", None, float("nan")])
def test_what_is_no_number_is_in_no_range(value: object) -> None:
    with pytest.raises(ConfigError, match="x: expected 0 to 5"):
        require_range("x", value, 0, 5)  # type: ignore[arg-type]


RUN_NUMBERS = [
    *(name for name, field in RunSettings.__dataclass_fields__.items()
      if "int" in str(field.type) or "float" in str(field.type)),
    *(f"threads.{name}" for name in Threads.__dataclass_fields__),
    "suite.envs",
]  # fmt: skip
RUN_ZERO_MEANS = {
    "seed": "a seed like others",
    "probe_rate_hz": "no probe",
    "restart_limit": "the first end is the last",
    "restart_backoff_s": "at once",
    "stop_limit_s": "killed at once",
}


@pytest.mark.parametrize("name", RUN_NUMBERS)
def test_a_number_of_a_run_has_limits(name: str) -> None:
    words = ["-1", "true", "1e300"] if name in RUN_ZERO_MEANS else ["0", "true", "1e300"]
    for text in words:
        with pytest.raises(BadSetting, match=name.replace(".", r"\.")):
            compose_run(["suite=toy", f"{name}={text}"])

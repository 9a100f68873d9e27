import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from patience import HANG_S

from agent.wire.errors import ConfigError
from learner.algorithm_config import AlgorithmConfig, AsyncConfig, DpoConfig, PpoConfig
from learner.config import LearnerConfig
from learner.continual.settings import (
    SECTION_OF,
    ContinualConfig,
    CrlVlaConfig,
    DerConfig,
    ErConfig,
)

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "algorithm", sorted(p.stem for p in (CONFIGS / "algorithm").glob("*.yaml"))
)
def test_shipped_settings_fit_the_schema_key_by_key(algorithm):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        shipped = compose("learner", [f"algorithm={algorithm}"])
    schema = OmegaConf.structured(LearnerConfig)
    OmegaConf.merge(schema, shipped)  # a key that the schema lacks raises
    assert set(shipped) == set(schema)
    assert set(shipped.algorithm) == set(schema.algorithm)
    assert set(shipped.evaluation) == set(schema.evaluation)


@pytest.mark.parametrize(("method", "schema"), [("ppo", PpoConfig), ("dpo", DpoConfig)])
def test_the_file_of_a_method_lists_every_setting_of_its_own(method, schema):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        shipped = compose("learner", [f"algorithm={method}-nano"])
    assert set(shipped.algorithm[method]) == set(schema.__dataclass_fields__)


def compose_continual(name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        shipped = compose("learner", [f"continual={name}"]).continual
    return shipped, OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(ContinualConfig), shipped)
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "continual").glob("*.yaml")))
def test_every_continual_file_lists_every_setting_of_its_section(name):
    shipped, settings = compose_continual(name)
    assert set(shipped) == set(ContinualConfig.__dataclass_fields__)
    section = SECTION_OF[settings.method]
    if section:
        fields = getattr(settings, section).__dataclass_fields__
        assert set(shipped[section]) == set(fields)


def test_the_replay_files_have_the_defaults_but_for_the_teacher():
    assert compose_continual("er")[1].er == ErConfig()
    assert compose_continual("der")[1].der == DerConfig(teacher="previous")
    assert compose_continual("der-base")[1].der == DerConfig(teacher="base")


def test_the_asynchronous_file_lists_every_setting_of_its_section():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        shipped = compose("learner", ["algorithm=grpo-async-nano"])
    assert set(shipped.algorithm.asynchronous) == set(AsyncConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample_degenerate": 2}, "resample_degenerate=0"),
        ({"method": "sft"}, "only grpo corrects"),
        ({"method": "ppo", "ppo": PpoConfig()}, "only grpo corrects"),
    ],
)
def test_what_cannot_be_asynchronous_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        AlgorithmConfig(asynchronous=AsyncConfig(), **change)
    AlgorithmConfig(asynchronous=AsyncConfig(staleness=0), **change)


@pytest.mark.parametrize("change", [{"staleness": -1}, {"weight_cap": 1.0}, {"dual_clip": 0.5}])
def test_impossible_asynchronous_settings_are_refused_by_name(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        AsyncConfig(**change)


def test_the_files_of_crl_vla_have_the_defaults_but_for_the_critic():
    assert compose_continual("crl-vla")[1].crl_vla == CrlVlaConfig(critic="v")
    assert compose_continual("crl-vla-q")[1].crl_vla == CrlVlaConfig(critic="q")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ppo": None}, "algorithm.ppo belongs to algorithm.method=ppo"),
        ({"method": "grpo"}, "algorithm.ppo belongs to algorithm.method=ppo"),
        ({"resample_degenerate": 2}, "resample_degenerate=0"),
        ({"advantage_control": "permute_within_group"}, "advantage_control=none"),
    ],
)
def test_ppo_settings_that_contradict_each_other_are_refused(change, message):
    settings = {"method": "ppo", "ppo": PpoConfig(), **change}
    with pytest.raises(ConfigError, match=message):
        AlgorithmConfig(**settings)


@pytest.mark.parametrize(
    "change",
    [{"gamma": 1.1}, {"gae_lambda": -0.1}, {"value_clip": 0}, {"huber_delta": 0},
     {"value_lr": -1}, {"value_coef": -1}, {"hidden_sizes": [0]}, {"ratio": "episode"}],
)  # fmt: skip
def test_impossible_ppo_settings_are_refused_by_name(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        PpoConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo": None}, "algorithm.dpo belongs to algorithm.method=dpo"),
        ({"method": "grpo"}, "algorithm.dpo belongs to algorithm.method=dpo"),
        ({"grouping": "task"}, "grouping=init_state"),
    ],
)
def test_dpo_settings_that_contradict_each_other_are_refused(change, message):
    settings = {"method": "dpo", "dpo": DpoConfig(), **change}
    with pytest.raises(ConfigError, match=message):
        AlgorithmConfig(**settings)


def test_a_beta_that_prefers_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"algorithm\.dpo\.beta: expected more than 0"):
        DpoConfig(beta=0)


@pytest.mark.slow
def test_help_and_bad_settings_answer_without_loading_torch():
    code = (
        "import sys; from learner.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "status = main(['seed=-1'])\n"
        "assert status == 2, status\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "suite.tasks is empty" in run.stderr

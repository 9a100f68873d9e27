import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.wire.errors import ConfigError
from learner.algorithm_config import AlgorithmConfig, DpoConfig, PpoConfig
from learner.config import LearnerConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "algorithm", ["grpo-nano", "grpo-7b", "ppo-nano", "ppo-7b", "dpo-nano", "sft-nano"]
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
    with pytest.raises(ConfigError, match=r"algorithm\.dpo\.beta must be > 0"):
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
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "suite.tasks is empty" in run.stderr

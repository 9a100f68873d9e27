import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from learner.config import LearnerConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("algorithm", ["grpo-nano", "grpo-7b", "sft-nano"])
def test_shipped_settings_fit_the_schema_key_by_key(algorithm):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        shipped = compose("learner", [f"algorithm={algorithm}"])
    schema = OmegaConf.structured(LearnerConfig)
    OmegaConf.merge(schema, shipped)  # a key that the schema lacks raises
    assert set(shipped) == set(schema)
    assert set(shipped.algorithm) == set(schema.algorithm)
    assert set(shipped.evaluation) == set(schema.evaluation)


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

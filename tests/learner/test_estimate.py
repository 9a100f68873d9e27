"""The tables of a run that is not started."""

import json
import re
from dataclasses import asdict, replace

import pytest

from agent.config import AgentConfig, PolicyConfig
from agent.model.cost import published_config
from agent.model.gpus import Gpu, gpu_by_name
from agent.wire.errors import ConfigError
from learner import dryrun
from learner.config import LearnerConfig, SuiteConfig, TaskConfig
from learner.estimate import Hours, Memory, MemoryRow, estimate_hours, samples_bytes
from learner.workload import Played, Workload

INSTRUCTION = "put the red cube in the tray"
SUITE = SuiteConfig("tabletop", [TaskConfig("a", INSTRUCTION, 40)], ["a"], [], 5, 4)
NONE = Workload(Played(), Played(), Played(), 0, 0, 0, 0, 0)
GPU = Gpu("a GPU", 1e12, 1e15, 10e9)


@pytest.fixture
def files(tmp_path):
    settings = {"agent": AgentConfig(policy=PolicyConfig(adapter_rank=8)),
                "learner": LearnerConfig(suite=SUITE, unnorm_key="tabletop")}  # fmt: skip
    for name, config in settings.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(asdict(config)))
    return [f"--{name}={tmp_path / name}.yaml" for name in settings]


def words(files, *more):
    return [*files, "--gpu=h100", "--utilisation=0.5", "--bodies=4", "--image-size=64", *more]


def test_a_run_of_the_nano_policy_is_described_from_its_folder(files, capsys):
    assert dryrun.main(words(files)) == 0
    out = capsys.readouterr().out
    assert "agent/assets/nano; float32 base, prompts of " in out
    # 10 iterations of 64 episodes, 8 chunks of 5 steps each.
    assert re.search(r"episodes +640 ", out)
    assert re.search(r"chunks served +5,120 ", out)
    assert "more, for degenerate groups" not in out
    assert "server and learner fit together" in out
    assert "this suite's episodes were not measured" in out


def test_a_gpu_that_is_not_known_ends_in_one_line(files, capsys):
    assert dryrun.main(words(files, "--gpu=B200")) == 2
    assert "names 0 of those known: H200 SXM" in capsys.readouterr().err
    assert gpu_by_name("a100").memory_bytes == 80e9
    with pytest.raises(ConfigError, match="names 3"):
        gpu_by_name("SXM")


def test_memory_says_how_many_gpus_a_run_takes():
    memory = Memory([MemoryRow("a", 3e9, 4e9, "counted"), MemoryRow("b", 0, 2e9, "counted")],
                    0, 0, 0)  # fmt: skip
    assert (memory.server_bytes, memory.learner_bytes) == (3e9, 6e9)
    assert [memory.gpus(replace(GPU, memory_bytes=size)) for size in (9e9, 6e9, 5e9)] == [1, 2, 0]


def test_hours_follow_from_flops_and_from_measured_seconds():
    network = published_config(variant="oft-discrete")
    config = LearnerConfig(suite=replace(SUITE, name="libero_spatial"), recompute_activations=True)
    config.algorithm.lora_rank = 32
    policy = PolicyConfig(micro_batch=8, dtype="bfloat16")
    work = replace(NONE, training=Played(1, 7200, 3600), samples_trained=3600)

    def hours(bodies, work=work):
        return estimate_hours(policy, config, network, 35, work, GPU, bodies)

    # docs/performance.md: 4.976 TFLOP a chunk, 1.4% more with an adapter; 15.32 a sample.
    assert hours(8).serve == pytest.approx(4.976 * 1.014, rel=1e-3)
    assert hours(8).learn == pytest.approx(15.32, rel=1e-3)
    assert hours(2).serve == pytest.approx(4 * hours(8).serve)
    assert hours(8).simulate == pytest.approx((7200 * 0.0158 + 3600 * 0.3817) / 3600)
    scored = hours(8, replace(work, samples_scored=3600)).learn - hours(8).learn
    assert scored == pytest.approx(4.976, rel=1e-3)


def test_collecting_takes_as_long_as_the_slower_of_its_halves():
    hours = Hours(serve=2.0, learn=3.0, simulate=40.0)
    assert hours.wall(10) == 3.0 + 4.0
    assert hours.wall(100) == 3.0 + 2.0
    assert Hours(2.0, 3.0, None).wall(10) is None


def test_pictures_are_held_twice_while_they_are_joined():
    work = replace(NONE, largest_iteration=Played(1, 80, 10))
    network = published_config(variant="oft-discrete", num_images=2)
    assert samples_bytes(work, network, 256) == 2 * 10 * 2 * 256 * 256 * 3

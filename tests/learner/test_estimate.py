"""The tables of a run that is not started."""

import json
import re
from dataclasses import asdict, replace

import pytest
from micro_fixtures import micro_policy

from agent.config import AgentConfig, PolicyConfig
from agent.model.cost import published_config
from agent.model.gpus import Gpu, gpu_by_name
from agent.wire.errors import ConfigError
from learner import dryrun
from learner.algorithm_config import AlgorithmConfig, PpoConfig
from learner.config import LearnerConfig, SuiteConfig, TaskConfig
from learner.continual.settings import (
    ContinualConfig,
    CrlVlaConfig,
    DerConfig,
    ErConfig,
    EwcConfig,
    RetainConfig,
)
from learner.dual_critic import DualCritic
from learner.estimate import (
    Hours,
    Memory,
    MemoryRow,
    estimate_hours,
    estimate_memory,
    replay_bytes,
    samples_bytes,
)
from learner.workload import Played, Workload

INSTRUCTION = "put the red cube in the tray"
SUITE = SuiteConfig("tabletop", [TaskConfig("a", INSTRUCTION, 40)], ["a"], [], 5, 4)
THREE = SuiteConfig("toy", [TaskConfig(name, "move", 8) for name in "abc"], list("abc"), [], 5, 4)
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


def rows_of(network, **settings):
    """The learner's bytes by the row's name, for three tasks and a rank of 2."""
    algorithm = settings.pop("algorithm", AlgorithmConfig(lora_rank=2))
    config = LearnerConfig(suite=THREE, algorithm=algorithm, micro_batch=2, **settings)
    memory = estimate_memory(PolicyConfig(adapter_rank=2), config, network, 9)
    return {row.name: row.learner_bytes for row in memory.rows}, memory


@pytest.mark.parametrize("kind", ["v", pytest.param("q", marks=pytest.mark.slow)])
def test_the_critics_are_those_that_the_learner_makes(tmp_path, kind):
    policy = micro_policy(tmp_path)
    critic = DualCritic(policy, [8, 4], 0, kind == "q", 4)
    ppo = AlgorithmConfig(method="ppo", ppo=PpoConfig(hidden_sizes=[8, 4]), lora_rank=2)
    continual = ContinualConfig("crl-vla", crl_vla=CrlVlaConfig(critic=kind))
    rows, memory = rows_of(policy.network.config, algorithm=ppo, continual=continual)
    assert memory.critic_parameters == sum(p.numel() for p in critic.trained)
    frozen = sum(p.nbytes for p in critic.parameters() if not p.requires_grad)
    assert rows["CRL-VLA: the frozen head"] == frozen
    assert rows["critic: the same"] == 4 * frozen


@pytest.mark.slow
def test_what_continual_methods_remember_is_counted(tmp_path):
    policy = micro_policy(tmp_path)
    adapter = sum(tensor.nbytes for tensor in policy.parameters.values())
    network = policy.network.config
    plain, _ = rows_of(network)
    assert plain["adapter: float32 weights, gradients, Adam"] == 4 * adapter
    ewc, _ = rows_of(network, continual=ContinualConfig("ewc", ewc=EwcConfig()))
    assert ewc["EWC: Fisher information and anchor"] == 2 * adapter
    retain, _ = rows_of(network, continual=ContinualConfig("retain", retain=RetainConfig()))
    assert retain["RETAIN: updates of earlier tasks"] == 2 * adapter


@pytest.mark.slow
def test_whole_weights_have_a_frozen_factor_beside_the_trained_one(tmp_path):
    policy = micro_policy(tmp_path, rank=32, full_rank=True)
    whole = AlgorithmConfig(lora_rank=32, lora_alpha=32, full_rank=True)
    rows, memory = rows_of(policy.network.config, algorithm=whole)
    trained = sum(tensor.numel() for tensor in policy.parameters.values())
    pairs = sum(p.nbytes for name, p in policy.network.named_parameters() if ".lora_" in name)
    assert memory.adapter_parameters == trained
    assert rows["adapter: float32 weights, gradients, Adam"] == pairs + 12 * trained


def test_a_replay_memory_is_full_at_the_last_task():
    network = published_config(variant="oft-discrete")
    picture, answer = 256 * 256 * 3, 4 * 8 * 7 * 256

    def size(method, **section):
        config = LearnerConfig(suite=THREE, continual=ContinualConfig(method, **section))
        return replay_bytes(config, network, 256)

    assert size("er", er=ErConfig(chunks_per_task=10)) == 2 * 10 * picture
    assert size("der", der=DerConfig(chunks_per_task=10)) == 2 * 10 * (picture + answer)
    assert size("sequential") == 0

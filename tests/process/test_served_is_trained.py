"""What the server recorded when it sampled is what the learner computes when it trains."""

import json
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_model import write_micro_model
from observed_run import process, read_events, start_run, wait_until
from omegaconf import DictConfig, OmegaConf
from patience import HANG_S
from prometheus_client.parser import text_string_to_metric_families

from agent.episode import Episode, read_episode
from agent.model.folder import hash_folder
from agent.model.lora import read_adapter
from agent.model.policy_model import load_policy_model
from agent.wire.messages import Order, Phase
from agent.wire.sockets import DealerClient
from deploy.local.placement import make_socket_folder, socket_folder
from learner.batch import Trajectory, build_samples, micro_batches
from learner.link import AgentLink, Session
from learner.policy import LoraPolicy
from learner.store import LearnerStore

REPEAT_S = 10.0  # after which a request is sent again
TOLERANCE = 1e-4  # [nats]
MICRO_BATCH = 8
SLOTS = 2  # episodes of one version that run at once


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its model folder is beside it."""
    folder = tmp_path_factory.mktemp("served")
    write_micro_model(folder / "model")
    with start_run(folder / "run", folder / "model") as run:
        wait_until(lambda: run.poll() is not None, "the run was over", run)
        assert run.returncode == 0, (folder / "run.log").read_text()[-2000:]
    return folder / "run"


@pytest.mark.slow
def test_trained_episodes_of_concurrent_envs_score_as_they_were_served(run_dir: Path) -> None:
    trained = [
        episode
        for path in sorted((run_dir / "learner" / "episodes").glob("*.mcap"))
        if (episode := read_episode(path)).meta.phase == Phase.TRAIN
    ]
    adapted = by_version(trained)
    adapted.pop("base")  # its adapter is zero: it would prove nothing
    assert len(adapted) >= 2
    assert any(overlap(a, b) for version in adapted.values() for a, b in pairs(version))
    assert_scored_as_served(run_dir, adapted)
    for line in read_events(run_dir, "iteration"):
        assert line["lp_diff_max"] <= TOLERANCE
        assert line["first_clip_fraction"] == 0


@pytest.mark.slow
def test_episodes_of_batches_that_mix_versions_score_as_they_were_served(run_dir: Path) -> None:
    iterations = read_events(run_dir, "iteration")
    versions = [iterations[0]["version"], iterations[-1]["version"]]
    episodes, mixed_batches = serve_together(run_dir, versions)
    assert mixed_batches > 0
    counts = {version: len(group) for version, group in by_version(episodes).items()}
    assert counts == dict.fromkeys(versions, 4 * SLOTS)
    assert_scored_as_served(run_dir, by_version(episodes))


def assert_scored_as_served(run_dir: Path, episodes: dict[str, list[Episode]]) -> None:
    """Recorded and recomputed agree under the version's adapter, but not without it."""
    settings = OmegaConf.load(run_dir / "config" / "learner.yaml")
    algorithm = settings.algorithm
    model = load_policy_model(str(run_dir.parent / "model"), {}, ["agentview", "wrist"], "micro")
    policy = LoraPolicy(model, algorithm.lora_rank, algorithm.lora_alpha, seed=0)
    base = policy.adapter_tensors()
    for version, group in episodes.items():
        policy.load_adapter(read_adapter(run_dir / "adapters" / version)[0])
        assert largest_difference(policy, group) <= TOLERANCE, version
        policy.load_adapter(base)
        assert largest_difference(policy, group) > 10 * TOLERANCE, version


@torch.no_grad()
def largest_difference(policy: LoraPolicy, episodes: list[Episode]) -> float:
    """Largest |recomputed - recorded| log-probability [nats] of all tokens of the episodes."""
    trajectories = [Trajectory(i, episode, 0.0) for i, episode in enumerate(episodes)]
    samples = build_samples(trajectories, ["agentview", "wrist"])
    assert samples is not None
    differences = [
        np.abs(policy.score(samples, rows).logprobs_BKA.numpy() - samples.logprobs_BKA[rows]).max()
        for rows, _ in micro_batches(samples, np.arange(len(samples)), MICRO_BATCH)
    ]
    return float(np.max(differences))


def serve_together(run_dir: Path, versions: list[str]) -> tuple[list[Episode], int]:
    """The run's agent and simulator again, asked for episodes of several versions at once.

    No more than SLOTS episodes of one version are open at a time, so a batch of more mixes them.
    Returns the sealed episodes and the number of such batches.
    """
    make_socket_folder(socket_folder(run_dir))
    configs = {name: run_dir / "config" / f"{name}.yaml" for name in ("agent", "sim-0", "learner")}
    endpoints_path = run_dir / "agent" / "endpoints.json"
    endpoints_path.unlink(missing_ok=True)
    python = [sys.executable, "-m"]
    # An agent that waits for all open episodes fills its batches however slow the simulator is.
    agent_words = [*python, "agent", "--config", str(configs["agent"]), "max_wait_s=0.2"]
    with process(agent_words, run_dir / "logs" / "agent-again.log") as agent:
        wait_until(endpoints_path.exists, "the agent was there", agent)
        sim_words = [*python, "sim_bridge", "--config", str(configs["sim-0"])]
        with process(sim_words, run_dir / "logs" / "sim-again.log"):
            learner = OmegaConf.load(configs["learner"])
            episodes = collect(run_dir, versions, learner)
        url = json.loads(endpoints_path.read_text())["http"]
        return episodes, count_batches_above(url, SLOTS)


def collect(run_dir: Path, versions: list[str], learner: DictConfig) -> list[Episode]:
    """Orders and fetches SLOTS episodes of each version and task, one task after another."""
    stop = threading.Event()
    giving_up = threading.Timer(HANG_S, stop.set)
    giving_up.start()
    store = LearnerStore(run_dir / "learner" / "learner.db")
    session = Session(store, "test", hash_folder(run_dir.parent / "model"))
    link = AgentLink(session, DealerClient(learner.operator_endpoint, REPEAT_S), stop)
    episodes: list[Episode] = []
    try:
        for task in learner.suite.tasks:
            orders = [
                Order(
                    order_id=f"mixed/{task.slug}/{version}", suite="toy", task=task.slug,
                    instruction=task.instruction, split="train", init_state=0,
                    horizon_steps=task.horizon_steps, slots=SLOTS, phase=Phase.TRAIN,
                    version=version, temperature=1.0, run_seed=7, noise_key=task.slug,
                )
                for version in versions
            ]  # fmt: skip
            link.post_orders(orders)
            wanted = len(episodes) + len(orders) * SLOTS
            while len(episodes) < wanted:
                sealed = link.fetch(limit=16, wait_s=1.0)
                episodes += [
                    read_episode(item.payload.tobytes())
                    for item in sealed
                    if item.order_id.startswith("mixed/")
                ]
                link.acknowledge({item.episode_id: item.sha256 for item in sealed})
    finally:
        giving_up.cancel()
        link.close()
        store.close()
    return episodes


def count_batches_above(url: str, size: int) -> int:
    """How many calls of the policy had more than `size` observations."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=HANG_S) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in families
        if family.name == "perennial_batch_size"
        for sample in family.samples
    }
    total = samples["perennial_batch_size_count", None]
    return int(total - samples["perennial_batch_size_bucket", f"{size:.1f}"])


def by_version(episodes: list[Episode]) -> dict[str, list[Episode]]:
    """Episodes by the version that they are pinned to."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.meta.version, []).append(episode)
    return groups


def pairs(episodes: list[Episode]) -> list[tuple[Episode, Episode]]:
    """Every two of them."""
    return [(a, b) for i, a in enumerate(episodes) for b in episodes[:i]]


def overlap(a: Episode, b: Episode) -> bool:
    """Whether the two were open at the same time."""
    return (
        a.meta.started_unix_s < b.end.sealed_unix_s and b.meta.started_unix_s < a.end.sealed_unix_s
    )

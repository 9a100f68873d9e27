"""What a run would take, from its processes' settings: nothing is loaded, nothing is started.

`perennial dry-run` composes the settings and calls this. Without a checkpoint the network has the
published 7B's geometry.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.process import BAD_INPUT, load_config, run_command
from agent.process.arguments import real_number, whole_number
from agent.process.paths import user_path
from agent.process.shown import complain
from agent.wire.errors import ConfigError

if TYPE_CHECKING:
    from agent.config import PolicyConfig
    from agent.model.config import OpenVLAConfig
    from learner.config import LearnerConfig
    from learner.estimate import Hours, Memory
    from learner.workload import Workload

LIBERO_PROMPT_TOKENS = 35  # of a usual LIBERO instruction, where no tokenizer is there to ask
GB = 1e9


@dataclass(frozen=True)
class Conditions:
    """What the figures hold for, beside the settings."""

    gpu: str
    utilisation: float  # share of the GPU's peaks that is sustained
    bodies: int  # environments stepped at the same time
    image_size: int
    mean_steps: int | None  # of an episode; None: its horizon


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns the exit status: 2 for settings that cannot work."""
    arguments = _parser().parse_args(argv)
    conditions = Conditions(
        arguments.gpu,
        arguments.utilisation,
        arguments.bodies,
        arguments.image_size,
        arguments.mean_steps,
    )
    try:
        print(
            describe_run(arguments.agent, arguments.learner, arguments.published, conditions),
            flush=True,
        )
    except ConfigError as error:
        complain("perennial dry-run", error)
        return BAD_INPUT
    return 0


def describe_run(agent: Path, learner: Path, published: bool, conditions: Conditions) -> str:
    """The tables of a run, from the settings files of its agent and learner.

    Raises:
        ConfigError: settings, model folder or GPU that cannot be used.
    """
    from agent.config import AgentConfig
    from learner.config import LearnerConfig

    policy = load_config(AgentConfig, agent, []).policy
    config = load_config(LearnerConfig, learner, [])

    from agent.model.gpus import gpu_by_name
    from agent.model.policy_model import NANO_FOLDER
    from learner.estimate import estimate_hours, estimate_memory, replay_bytes, samples_bytes
    from learner.workload import count_workload

    peak = gpu_by_name(conditions.gpu)
    network, prompt_tokens = read_network(config, published)
    work = count_workload(config, network.chunk_size, conditions.mean_steps)
    memory = estimate_memory(policy, config, network, prompt_tokens)
    sustained = peak.reaching(conditions.utilisation, conditions.utilisation)
    hours = estimate_hours(
        policy, config, network, prompt_tokens, work, sustained, conditions.bodies
    )
    pictures = samples_bytes(work, network, conditions.image_size)
    replay = replay_bytes(config, network, conditions.image_size)
    folder = config.model_dir or str(NANO_FOLDER)
    source = "published 7B geometry, no checkpoint" if published else folder
    return "\n".join(
        [
            *_network_lines(memory, source, policy, config, prompt_tokens),
            *_memory_lines(memory),
            f"{peak.name}, {peak.memory_bytes / GB:.0f} GB: {_verdict(memory.gpus(peak))}",
            "",
            *_work_lines(work, conditions),
            "",
            *_host_lines({"pictures of an iteration": pictures, "replay memory": replay}),
            "",
            *_hours_lines(hours, memory.gpus(peak), conditions, sustained.name),
        ]
    )


def read_network(config: LearnerConfig, published: bool) -> tuple[OpenVLAConfig, int]:
    """The network's geometry, and the tokens of the longest prompt of the run's tasks.

    Raises:
        ConfigError: a folder that cannot be used, or a network whose cost is not counted.
    """
    from agent.model.checkpoint import read_config
    from agent.model.cost import published_config
    from agent.model.errors import ModelFolderError
    from agent.model.folder import ModelFolder
    from agent.model.policy_model import NANO_FOLDER
    from agent.model.processing import PromptEncoder

    stated: dict[str, Any] = {k: v for k, v in config.architecture.items() if v is not None}
    stated.setdefault("num_images", len(config.cameras))
    if published:
        if stated.get("variant") == "oft-l1":  # its folder would show the projector
            stated.setdefault("use_proprio", True)
        return published_config(**stated), LIBERO_PROMPT_TOKENS
    folder = Path(config.model_dir) if config.model_dir else NANO_FOLDER
    try:
        network = read_config(ModelFolder.open(folder), stated)
        prompts = PromptEncoder(folder, network)
    except ModelFolderError as error:
        raise ConfigError(f"model.model_dir: {error}") from error
    if network.variant == "cnn":
        raise ConfigError("the cost of variant cnn is not counted: it needs no GPU")
    try:
        return network, max(len(prompts.encode(task.instruction)) for task in config.suite.tasks)
    except ValueError as error:
        raise ConfigError(f"suite.tasks: {error}") from error


def _network_lines(
    memory: Memory, source: str, policy: PolicyConfig, config: LearnerConfig, prompt_tokens: int
) -> list[str]:
    """Parameters, and what the cost is computed for."""
    lines = [
        f"network: {source}; {policy.dtype} base, prompts of {prompt_tokens} tokens",
        f"  parameters             {memory.parameters:>15,}  counted",
        f"  adapter, rank {config.algorithm.lora_rank:<8} {memory.adapter_parameters:>15,}"
        "  counted, trained",
    ]
    if memory.critic_parameters:
        lines.append(f"  critic                 {memory.critic_parameters:>15,}  counted, trained")
    return [*lines, ""]


def _memory_lines(memory: Memory) -> list[str]:
    width = max(len(row.name) for row in memory.rows)
    lines = [f"{'GPU memory [GB]':<{width + 2}}  server  learner"]
    for row in memory.rows:
        lines.append(
            f"  {row.name:<{width}}  {_gb(row.server_bytes)}  {_gb(row.learner_bytes)}   "
            f"{row.basis}"
        )
    total = f"{_gb(memory.server_bytes)}  {_gb(memory.learner_bytes)}"
    return [*lines, f"  {'total':<{width}}  {total}"]


def _gb(size: float) -> str:
    return f"{size / GB:6.2f}" if size else f"{'-':>6}"


def _verdict(gpus: int) -> str:
    return {
        1: "server and learner fit together",
        2: "fits one process each; put them on two GPUs: agent.policy.device=cuda:1",
        0: "does not fit",
    }[gpus]


def _work_lines(work: Workload, conditions: Conditions) -> list[str]:
    limit = "the horizon" if conditions.mean_steps is None else f"{conditions.mean_steps} steps"
    rows = [
        ("episodes", work.training.episodes, work.evaluation.episodes),
        ("environment steps", work.training.steps, work.evaluation.steps),
        ("chunks served", work.training.chunks, work.evaluation.chunks),
    ]
    lines = [f"{f'work, all episodes to {limit}':<38} training  evaluation"]
    lines += [f"  {name:<31} {train:>13,} {test:>11,}   counted" for name, train, test in rows]
    if work.resampled:
        lines.append(f"  {'more, for degenerate groups':<31} {work.resampled:>13,}   at most")
    return [
        *lines,
        f"  {'chunks through a backward':<31} {work.samples_trained:>13,}   counted",
        f"  {'optimiser steps':<31} {work.optimizer_steps:>13,}   counted, of {work.updates} "
        "updates",
    ]


def _host_lines(sizes: dict[str, int]) -> list[str]:
    lines = [f"  {name:<31} {size / GB:13.2f}   counted" for name, size in sizes.items() if size]
    return ["the learner's own memory [GB]", *lines]


def _hours_lines(hours: Hours, gpus: int, conditions: Conditions, speed: str) -> list[str]:
    """The time, and what it was computed from."""
    busy = hours.serve + hours.learn
    lines = [
        f"time on {speed} of its peaks in compute and bandwidth",
        f"  serving            {hours.serve:10.1f} GPU-hours   derived",
        f"  learning           {hours.learn:10.1f} GPU-hours   derived",
        f"  together           {busy:10.1f} GPU-hours",
    ]
    wall = hours.wall(conditions.bodies)
    if hours.simulate is None or wall is None:
        lines.append("  simulators: this suite's episodes were not measured")
    else:
        held = "" if gpus == 0 else f"; {gpus} GPU{'s' if gpus > 1 else ''} held: {gpus * wall:.0f}"
        held += " GPU-hours" if held else ""
        lines += [
            f"  simulating         {hours.simulate:10.1f} core-hours  measured, rendering in "
            "software (benchmarks/reports/libero-cost.md)",
            f"  wall               {wall:10.1f} hours       with {conditions.bodies} environments, "
            f"a core each{held}",
        ]
    return [
        *lines,
        f"The {conditions.utilisation:.0%} are assumed; `python -m benchmarks.model_latency` "
        "measures them on your GPU.",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="learner.dryrun", description=__doc__)
    count = whole_number(1, 1_000_000_000)
    for name in ("agent", "learner"):
        parser.add_argument(f"--{name}", type=user_path, required=True, metavar="FILE.yaml")
    parser.add_argument("--published", action="store_true", help="there is no model folder")
    parser.add_argument("--gpu", required=True)
    parser.add_argument("--utilisation", type=real_number(0, 1, is_open=True), required=True)
    parser.add_argument("--bodies", type=count, required=True)
    parser.add_argument("--image-size", type=count, required=True)
    parser.add_argument("--mean-steps", type=count)
    return parser


if __name__ == "__main__":
    run_command(main)

"""Settings of the agent process; `configs/agent.yaml` sets them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from agent.process.checks import require_choice, require_range
from agent.process.errors import ConfigError
from agent.process.instruction import clean_instruction

POLICIES = ("vla", "noop")
DTYPES = ("float32", "bfloat16")
EPISODE_BYTES_LIMIT = 1000 << 20  # with room for what its file adds within MAX_EPISODE_BYTES


@dataclass
class TaskConfig:
    """A task that a robot may start by name, without an order."""

    instruction: str = ""
    suite: str = "robot"


@dataclass
class PolicyConfig:
    """Which policy is served, and how its batches are made."""

    kind: str = "vla"  # vla | noop (zeros, for benchmarks)
    model_dir: str = ""  # vla: an OpenVLA-OFT folder; "": the nano model that comes along
    architecture: dict[str, Any] = field(default_factory=dict)  # what its config.json leaves out
    unnorm_key: str = ""  # "": the only one of the model folder
    cameras: list[str] = field(default_factory=lambda: ["agentview", "wrist"])  # model's order
    dtype: str = "float32"  # float32 | bfloat16
    device: str = "cpu"
    micro_batch: int = 8  # rows per forward, always exactly so many
    adapter_slots: int = 4  # versions resident at once, the base not counted
    adapter_rank: int = 32  # the largest that can be loaded
    compile: bool = False  # torch.compile: minutes before it is ready; not for variant openvla
    merge_hot: bool = False  # a version that keeps whole batches to itself gets merged weights

    def __post_init__(self) -> None:
        require_choice("policy.kind", self.kind, POLICIES)
        require_choice("policy.dtype", self.dtype, DTYPES)
        require_range("policy.micro_batch", self.micro_batch, 1, 1024)
        # The active version, the one to roll back to, and the next.
        require_range("policy.adapter_slots", self.adapter_slots, 3, 1024)
        require_range("policy.adapter_rank", self.adapter_rank, 1, 4096)
        if not self.cameras:
            raise ConfigError("policy.cameras: name at least one camera, e.g. [agentview]")


@dataclass
class AgentConfig:
    """One policy server. Raises ConfigError for values that cannot work."""

    state_dir: str = "agent-state"  # ledger, episodes, endpoints.json; held by a lock
    adapters_dir: str = "adapters"  # the adapter store that the learner publishes to
    robots_endpoint: str = "tcp://127.0.0.1:5555"
    operator_endpoint: str = ""  # "": ipc in a fresh private folder
    http_host: str = "127.0.0.1"
    http_port: int = 0  # 0: any free one; endpoints.json has it
    http_open: bool = False  # may serve metrics and health beyond this machine, in clear
    keys_dir: str = ""  # made by `perennial keys init`; "": sockets in clear, for this machine only
    insecure: bool = False  # allow binding beyond this machine without encryption
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)  # besides those of orders
    max_batch: int = 32  # observations per call of the policy
    max_wait_s: float = 0.002  # longest wait for a batch to fill
    max_open_episodes: int = 512
    max_message_bytes: int = 32 << 20
    max_chunk_bytes: int = 32 << 20  # recorded of one observation: two raw pictures of 2048²
    max_episode_bytes: int = 768 << 20  # recorded in all: 3 minutes of two raw 640x480 at 20 Hz / 8
    latency_budget_s: float = 0.4  # of a whole answer: 8 actions at 20 Hz last so long; a metric
    lease_s: float = 30.0  # silence after which a slot or an open episode is given up
    journal_flush_interval_s: float = 0.2
    keep_eval_images_per_task: int = 1  # eval episodes kept with pixels, per task and version
    threads: int = 1  # of numerical libraries
    die_with_parent: bool = False  # SIGTERM to itself when the parent process ends (Linux)

    def __post_init__(self) -> None:
        require_range("max_batch", self.max_batch, 1, 4096)
        require_range("max_wait_s", self.max_wait_s, 0, 1)
        require_range("max_open_episodes", self.max_open_episodes, 1, 100_000)
        require_range("max_message_bytes", self.max_message_bytes, 1 << 16, 1 << 31)
        require_range("max_chunk_bytes", self.max_chunk_bytes, 1 << 10, 1 << 31)
        require_range("max_episode_bytes", self.max_episode_bytes, 1 << 16, EPISODE_BYTES_LIMIT)
        require_range("latency_budget_s", self.latency_budget_s, 0.001, 3600)
        require_range("lease_s", self.lease_s, 0.1, 86_400)
        require_range("journal_flush_interval_s", self.journal_flush_interval_s, 0.001, 10)
        require_range("keep_eval_images_per_task", self.keep_eval_images_per_task, 0, 1_000_000)
        require_range("threads", self.threads, 1, 1024)
        require_range("http_port", self.http_port, 0, 65_535)
        for name in self.tasks:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,127}", name):
                raise ConfigError(f"tasks: {name!r} is no slug; use a-z, 0-9, '_' and '-'")
        for name, task in self.tasks.items():
            task.instruction = read_instruction(f"tasks.{name}.instruction", task.instruction)


def read_instruction(name: str, text: str) -> str:
    """An instruction in its one spelling. Raises ConfigError naming the setting."""
    try:
        return clean_instruction(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error

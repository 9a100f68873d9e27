"""What a run takes: memory of server and learner, time on a GPU, time of simulators.

Every figure has a basis. counted: arithmetic on the settings. derived: from running the real code
on tensors without data, or from counted FLOPs and an assumed share of a GPU's peaks. measured: from
a committed report. assumed: neither.
"""

from dataclasses import dataclass

import torch

from agent.config import PolicyConfig
from agent.model.config import OpenVLAConfig
from agent.model.cost import TRAINED_BYTES, chunk_forwards, slot_flops, train_flops
from agent.model.footprint import Footprint, serving_footprint, training_footprint
from agent.model.gpus import Gpu, floor_s
from learner.config import LearnerConfig
from learner.critic import ValueHead
from learner.workload import Workload

FLOAT32_BYTES = 4
# A process's CUDA context, libraries' workspaces, and the gaps of the allocator.
OVERHEAD_BYTES = 1.0e9
# Core-seconds of a LIBERO environment: a control step, and a look at both cameras with the exact
# renderer in software (benchmarks/reports/libero-cost.md, 224 pixels, two slow cores).
LIBERO_STEP_S, LIBERO_LOOK_S = 0.0158, 0.3817


@dataclass(frozen=True)
class MemoryRow:
    """Bytes on the GPU of server and learner; 0 where a part does not exist."""

    name: str
    server_bytes: float
    learner_bytes: float
    basis: str


@dataclass(frozen=True)
class Memory:
    """What both processes hold, and the network's parameters."""

    rows: list[MemoryRow]
    parameters: int
    adapter_parameters: int
    critic_parameters: int

    @property
    def server_bytes(self) -> float:
        """Sum of the rows."""
        return sum(row.server_bytes for row in self.rows)

    @property
    def learner_bytes(self) -> float:
        """Sum of the rows."""
        return sum(row.learner_bytes for row in self.rows)

    def gpus(self, gpu: Gpu) -> int:
        """How many of them the run takes: one for both, one for each, or 0 if neither fits."""
        if self.server_bytes + self.learner_bytes <= gpu.memory_bytes:
            return 1
        return 2 if max(self.server_bytes, self.learner_bytes) <= gpu.memory_bytes else 0


@dataclass(frozen=True)
class Hours:
    """simulate: core-hours, None for a suite that was not measured; the rest on one GPU."""

    serve: float
    learn: float
    simulate: float | None

    def wall(self, bodies: int) -> float | None:
        """Collecting waits for server or simulators, whichever is slower; learning comes after.

        bodies: environments that are stepped at the same time, each on a core.
        """
        if self.simulate is None:
            return None
        return self.learn + max(self.serve, self.simulate / bodies)


def estimate_memory(
    policy: PolicyConfig, learner: LearnerConfig, network: OpenVLAConfig, prompt_tokens: int
) -> Memory:
    """Of the network `network` under both processes' settings."""
    served = serving_footprint(
        network,
        getattr(torch, policy.dtype),
        policy.micro_batch,
        prompt_tokens,
        slots=policy.adapter_slots + 1,
        rank=policy.adapter_rank,
        compiled=policy.compile,
        merged=policy.merge_hot,
    )
    trained = training_footprint(
        network,
        getattr(torch, learner.dtype),
        learner.micro_batch,
        prompt_tokens,
        rank=learner.algorithm.lora_rank,
        recompute=learner.recompute_activations,
        full_rank=learner.algorithm.full_rank,
    )
    critic = _critic_parameters(learner, network)
    rows = [
        MemoryRow("base's weights", served.base_bytes, trained.base_bytes, "counted"),
        MemoryRow(
            f"bank of {policy.adapter_slots} adapters and the base"
            + (", and merged weights" if policy.merge_hot else ""),
            served.adapter_bytes, 0, "counted",
        ),
        MemoryRow(
            "adapter: float32 weights, gradients, Adam", 0,
            trained.adapter_bytes + (TRAINED_BYTES - FLOAT32_BYTES) * trained.trained, "counted",
        ),
        *([MemoryRow("critic: the same", 0, TRAINED_BYTES * critic, "counted")] if critic else []),
        *_continual_rows(learner, trained, critic),
        MemoryRow(
            f"forward of {policy.micro_batch} rows; forward and backward of {learner.micro_batch}",
            served.working_bytes, trained.working_bytes, "derived",
        ),
        MemoryRow("CUDA context, allocator's gaps", OVERHEAD_BYTES, OVERHEAD_BYTES, "assumed"),
    ]  # fmt: skip
    return Memory(rows, trained.parameters, trained.trained, critic)


def estimate_hours(
    policy: PolicyConfig,
    learner: LearnerConfig,
    network: OpenVLAConfig,
    prompt_tokens: int,
    work: Workload,
    gpu: Gpu,
    bodies: int,
) -> Hours:
    """On `gpu`, whose speeds are what is sustained of its peaks.

    bodies: environments that ask at the same time. A forward always has the server's micro-batch
    of rows, so fewer of them leave some of its rows unused.
    """
    active = policy.adapter_slots if policy.compile else 1
    forwards = chunk_forwards(network, prompt_tokens, policy.micro_batch)
    extra = policy.micro_batch * slot_flops(network, prompt_tokens, policy.adapter_rank, active)
    batch_s = floor_s(forwards, gpu) + extra / gpu.flops_per_s
    used_rows = min(policy.micro_batch, bodies)
    chunks = work.training.chunks + work.evaluation.chunks
    rank = learner.algorithm.lora_rank
    sample_flops = train_flops(
        network, prompt_tokens, rank, checkpointing=learner.recompute_activations
    )
    scored_flops = sum(forward.flops for forward in chunk_forwards(network, prompt_tokens))
    learn_flops = work.samples_trained * sample_flops + work.samples_scored * scored_flops
    return Hours(
        serve=chunks / used_rows * batch_s / 3600,
        learn=learn_flops / gpu.flops_per_s / 3600,
        simulate=_simulation_hours(learner.suite.name, work),
    )


def samples_bytes(work: Workload, network: OpenVLAConfig, image_size: int) -> int:
    """The pictures of one iteration as the learner's process holds them, twice while it joins them.

    In the machine's memory, not the GPU's.
    """
    return 2 * work.largest_iteration.chunks * _picture_bytes(network, image_size)


def replay_bytes(learner: LearnerConfig, network: OpenVLAConfig, image_size: int) -> int:
    """A full replay memory: pictures, and answers where the method keeps them. As above."""
    continual = learner.continual
    replay = continual.er or continual.der or continual.crl_vla
    if replay is None:
        return 0
    if continual.er is not None:
        values = 0
    elif network.is_regression:
        values = 2 if continual.crl_vla is not None else 1  # mean and spread, or mean
    else:
        values = network.n_action_bins
    answer = FLOAT32_BYTES * network.action_tokens * values
    chunks = replay.chunks_per_task * (len(learner.suite.train_tasks) - 1)
    return chunks * (_picture_bytes(network, image_size) + answer)


def _picture_bytes(network: OpenVLAConfig, image_size: int) -> int:
    return network.num_images * 3 * image_size**2


def _critic_parameters(learner: LearnerConfig, network: OpenVLAConfig) -> int:
    """Of the critic's trained head."""
    ppo, crl_vla = learner.algorithm.ppo, learner.continual.crl_vla
    if ppo is None:
        return 0
    size = network.llama_config().hidden_size
    if crl_vla is not None:  # it reads a goal as wide as a word, and as Q the actions, too
        size = 2 * size + (network.action_tokens if crl_vla.critic == "q" else 0)
    with torch.device("meta"):
        head = ValueHead(size, ppo.hidden_sizes, learner.seed)
    return sum(parameter.numel() for parameter in head.parameters())


def _continual_rows(learner: LearnerConfig, trained: Footprint, critic: int) -> list[MemoryRow]:
    """What the continual method remembers on the GPU."""
    continual, earlier = learner.continual, len(learner.suite.train_tasks) - 1
    adapter = FLOAT32_BYTES * trained.trained
    remembered = []
    if continual.ewc is not None:
        remembered.append(("EWC: Fisher information and anchor", 2 * adapter))
    if continual.retain is not None:
        remembered.append(("RETAIN: updates of earlier tasks", earlier * adapter))
    if continual.crl_vla is not None:
        remembered.append(("CRL-VLA: the frozen head", FLOAT32_BYTES * critic))
    return [MemoryRow(name, 0, size, "counted") for name, size in remembered]


def _simulation_hours(suite: str, work: Workload) -> float | None:
    if not suite.startswith("libero_"):
        return None
    played = work.training + work.evaluation
    # The server is asked once a chunk, and a look comes before each question.
    return (played.steps * LIBERO_STEP_S + played.chunks * LIBERO_LOOK_S) / 3600

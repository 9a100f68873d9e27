"""The device's own peaks, and forwards in every mode."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from agent.model.autoregressive import generate
from agent.model.config import OpenVLAConfig
from agent.model.cost import Forward, chunk_forwards, slot_flops
from agent.model.gpus import Gpu, floor_s
from benchmarks.model_latency.build import (
    PROMPT_TOKENS,
    RANK,
    SLOTS,
    Machine,
    build_bank,
    build_config,
    build_inputs,
    build_model,
)
from benchmarks.model_latency.cells import Cell
from benchmarks.model_latency.timing import Patience, once_s

GRAPH_WARMUP = 3  # calls on a side stream before a capture, as CUDA graphs require


class Unavailable(Exception):
    """A cell that this machine cannot run; the text says why."""


def measure_device(machine: Machine, patience: Patience) -> dict[str, float]:
    """Speed of a large matrix product, and of a large copy (bytes read and written)."""
    side = 8192 if machine.is_cuda else 512
    a, b = (torch.randn(side, side, device=machine.device).to(machine.dtype) for _ in range(2))
    product_s = patience.median_s(machine, lambda: a @ b)
    source = torch.empty((2 << 30) if machine.is_cuda else (32 << 20), dtype=torch.uint8,
                         device=machine.device)  # fmt: skip
    target = torch.empty_like(source)
    copy_s = patience.median_s(machine, lambda: target.copy_(source))
    return {
        "flops_per_s": 2 * side**3 / product_s,
        "bytes_per_s": 2 * source.numel() / copy_s,
    }


@torch.inference_mode()
def measure_forward(
    cell: Cell, machine: Machine, patience: Patience, peak: Gpu
) -> dict[str, float]:
    """Chunks of the parallel discrete variant; in a bank neighbouring rows have other adapters.

    Eager, the bank computes each row's own adapter; captured or compiled, all of them, masked.

    Raises:
        Unavailable: the cell needs CUDA graphs and the machine has none.
    """
    if not machine.is_cuda and "graph" in cell.mode:
        raise Unavailable("CUDA graphs need a CUDA device")
    config = build_config(machine.size, variant="oft-discrete", num_images=cell.images)
    model = build_model(config, machine)
    masked = cell.mode != "eager"
    if cell.bank:
        bank = build_bank(model, masked=masked)
        bank.select([1 + row % (SLOTS - 1) for row in range(cell.batch)])
    ids, pixels = build_inputs(config, cell.batch, machine)
    call = _in_mode(cell, machine, model)
    start_s = time.perf_counter()
    replay = _captured(machine, lambda: call(ids, pixels)) if cell.mode == "graph" else None
    first_s = once_s(machine, replay or (lambda: call(ids, pixels)))
    ready_s = time.perf_counter() - start_s if replay else first_s
    seconds = patience.median_s(machine, replay or (lambda: call(ids, pixels)))
    prompt = PROMPT_TOKENS[machine.size]
    (forward,) = chunk_forwards(config, prompt, cell.batch)
    if cell.bank:
        extra = cell.batch * slot_flops(config, prompt, RANK, SLOTS - 1 if masked else 1)
        llm = forward.flops_by_part["llm"] + extra
        forward = Forward({**forward.flops_by_part, "llm": llm}, forward.bytes_read)
    return {"first_s": ready_s, **_speeds(config, cell, seconds, [forward], machine, peak)}


@torch.inference_mode()
def measure_generate(
    cell: Cell, machine: Machine, patience: Patience, peak: Gpu
) -> dict[str, float]:
    """Actions of the causal variant, token after token with a cache."""
    config = build_config(machine.size, variant="openvla", greedy_range="vocabulary")
    model = build_model(config, machine)
    ids, pixels = build_inputs(config, cell.batch, machine)
    temperatures = torch.zeros(cell.batch, device=machine.device)
    shape = (cell.batch, config.chunk_size, config.action_dim, config.n_action_bins)
    noise = torch.zeros(shape, device=machine.device)

    def call() -> object:
        return generate(model, ids, pixels, temperatures, noise)

    first_s = once_s(machine, call)
    seconds = patience.median_s(machine, call)
    forwards = chunk_forwards(config, PROMPT_TOKENS[machine.size], cell.batch)
    return {"first_s": first_s, **_speeds(config, cell, seconds, forwards, machine, peak)}


def _speeds(
    config: OpenVLAConfig,
    cell: Cell,
    seconds: float,
    forwards: list[Forward],
    machine: Machine,
    peak: Gpu,
) -> dict[str, float]:
    chunks_per_s = cell.batch / seconds
    flops = sum(forward.flops for forward in forwards)
    return {
        "seconds_s": seconds,
        "floor_s": floor_s(forwards, peak),
        "chunks_per_s": chunks_per_s,
        "actions_per_s": chunks_per_s * config.chunk_size,
        "tokens_per_s": chunks_per_s * config.sequence_length(PROMPT_TOKENS[machine.size]),
        "peak_share": flops / seconds / peak.flops_per_s,
    }


def _in_mode(cell: Cell, machine: Machine, model: torch.nn.Module) -> Callable[..., object]:
    """The model as the cell calls it."""
    if cell.mode in ("eager", "graph"):
        return model
    if not machine.is_cuda:
        # Traces into one graph as on a GPU, but generates no code: that needs a C++ compiler.
        return torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    mode = "reduce-overhead" if cell.mode == "compile-graph" else "default"
    return torch.compile(model, mode=mode, fullgraph=True, dynamic=False)


def _captured(machine: Machine, call: Callable[[], object]) -> Callable[[], object]:
    """Replays `call`, which reads and writes the same tensors each time."""
    side = torch.cuda.Stream(machine.device)
    side.wait_stream(torch.cuda.current_stream(machine.device))
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARMUP):
            call()
    torch.cuda.current_stream(machine.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay

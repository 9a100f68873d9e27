"""From a published adapter to its first answer, and the merged copy of one."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from agent.adapters import AdapterStore
from agent.model.cost import count_adapter
from agent.model.lora import CONFIG_NAME, WEIGHTS_NAME, lora_targets, read_adapter
from benchmarks.model_latency.build import (
    RANK,
    Machine,
    build_adapter,
    build_bank,
    build_config,
    build_inputs,
    build_model,
)
from benchmarks.model_latency.timing import Patience, once_s


@torch.inference_mode()
def measure_swap(machine: Machine, patience: Patience) -> dict[str, float]:
    """Every step between a trained adapter and the first chunk that it decides.

    `install_s` is the pause of the server: all other steps happen beside its forwards.
    """
    config = build_config(machine.size, variant="oft-discrete")
    model = build_model(config, machine)
    files = _peft_files(model)
    bank = build_bank(model, masked=True)
    inputs = build_inputs(config, 1, machine)
    bank.select([1])
    model(*inputs)
    times: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        machine.synchronize()
        start_s = time.perf_counter()
        result = step()
        machine.synchronize()
        times[name] = time.perf_counter() - start_s
        return result

    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        store = AdapterStore(Path(folder))
        manifest = timed("publish_s", lambda: store.publish(
            1, files, parent="base", task="bench", base_sha256="", method="bench", metrics={}
        ))  # fmt: skip
        path = timed("verify_s", lambda: store.verify(manifest.version))
        tensors, spec = timed("read_s", lambda: read_adapter(path))
    prepared = timed("prepare_s", lambda: bank.prepare(tensors, spec))
    timed("install_s", lambda: bank.install(2, prepared))
    bank.select([2])
    timed("first_answer_s", lambda: model(*inputs))
    times["publish_to_served_s"] = sum(times.values())
    times["install_s"] = patience.median_s(machine, lambda: bank.install(2, prepared))
    parameters = count_adapter(config, RANK, dead=False).parameters
    times["slot_bytes"] = parameters * machine.dtype.itemsize
    return times


@torch.inference_mode()
def measure_merge(machine: Machine, patience: Patience) -> dict[str, float]:
    """Merging one slot from the pristine weights, and a chunk from the merged copy."""
    config = build_config(machine.size, variant="oft-discrete")
    model = build_model(config, machine)
    bank = build_bank(model, merged=True)
    inputs = build_inputs(config, 1, machine)
    first_s = once_s(machine, lambda: bank.merge(1))
    merge_s = patience.median_s(machine, lambda: bank.merge(1))
    bank.select([1])
    return {
        "first_s": first_s,
        "merge_s": merge_s,
        "forward_s": patience.median_s(machine, lambda: model(*inputs)),
    }


def _peft_files(model: Any) -> dict[str, bytes]:
    """A plain PEFT folder, as the learner hands it to the store."""
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": lora_targets(model),
    }
    return {
        CONFIG_NAME: json.dumps(config).encode(),
        WEIGHTS_NAME: save(build_adapter(model), {"format": "pt"}),
    }

"""The cost tables of docs/performance.md, computed from the published geometry.

python -m benchmarks.model_cost   writes them anew between the document's table markers
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.model.config import OpenVLAConfig
from agent.model.cost import (
    BF16_BYTES,
    PARTS,
    checkpointed_bytes,
    chunk_forwards,
    count_adapter,
    count_parameters,
    kv_bytes,
    published_config,
    slot_flops,
    train_flops,
    weight_bytes,
)
from agent.model.gpus import GPUS, bandwidth_floor_s, compute_floor_s, floor_s
from agent.model.layers import list_layers

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PROMPT, PADDED_PROMPT = 35, 128  # tokens of a LIBERO instruction; what RLinf pads it to
RANK = 32
SLOTS = 4  # adapters beside the base, the server's default
SUSTAINED = 0.8, 0.9  # of compute and of bandwidth: an assumption, not a measurement
PCIE_BYTES_PER_S = {"PCIe 4.0 x16": 32e9, "PCIe 5.0 x16": 64e9}

ONE_IMAGE = "discrete, 1 image"
TWO_IMAGES = "discrete, 2 images"
CAUSAL = "OpenVLA, causal, 1 action"
CAUSAL_CHOICES = {"variant": "openvla", "greedy_range": "vocabulary"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    ONE_IMAGE: (PROMPT, {"variant": "oft-discrete"}),
    "discrete, 1 image, STOP dropped": (
        PROMPT,
        {"variant": "oft-discrete", "keep_stop_token": False},
    ),
    f"discrete, 1 image, prompt padded to {PADDED_PROMPT}": (
        PADDED_PROMPT,
        {"variant": "oft-discrete"},
    ),
    TWO_IMAGES: (PROMPT, {"variant": "oft-discrete", "num_images": 2}),
    "L1 head, 2 images, proprio": (
        PROMPT,
        {"variant": "oft-l1", "num_images": 2, "use_proprio": True},
    ),
}


def _config(case: str) -> OpenVLAConfig:
    return published_config(**CASES[case][1])


def parameter_table() -> list[str]:
    """Stored parameters by part; heads are those of the L1 fine-tunes."""
    counted = count_parameters(_config(ONE_IMAGE))
    extra = count_parameters(_config("L1 head, 2 images, proprio"))["heads"]
    rows = [
        [part, f"{n.stored:,}", f"{n.never_run:,}", f"{BF16_BYTES * n.stored / 1e9:.2f}"]
        for part, n in counted.items()
    ]
    total = sum(n.stored for n in counted.values())
    idle = sum(n.never_run for n in counted.values())
    rows.append(["**checkpoint**", f"{total:,}", f"{idle:,}", f"{BF16_BYTES * total / 1e9:.2f}"])
    size = f"{BF16_BYTES * extra.stored / 1e9:.2f}"
    rows.append(["L1 head and proprio projector", f"{extra.stored:,}", "0", size])
    return _table(("part", "parameters", "never run", "GB in bf16"), rows)


def chunk_table() -> list[str]:
    """FLOPs of one chunk by part, and the weights it reads."""
    rows = []
    for case, (prompt, _) in CASES.items():
        config = _config(case)
        (forward,) = chunk_forwards(config, prompt)
        rows.append([case, str(config.sequence_length(prompt)), *_forward_columns([forward])])
    causal = published_config(**CAUSAL_CHOICES)
    prefill, *steps = chunk_forwards(causal, PROMPT)
    prefix = causal.sequence_length(PROMPT) - len(steps)
    rows.append(["OpenVLA, prefill", str(prefix), *_forward_columns([prefill])])
    rows.append([f"OpenVLA, {len(steps)} cached steps", str(len(steps)), *_forward_columns(steps)])
    head = ("case", "positions", *(f"{part} TFLOP" for part in PARTS), "total TFLOP", "GB read")
    return _table(head, rows)


def _forward_columns(forwards: list[Any]) -> list[str]:
    parts = [sum(f.flops_by_part[part] for f in forwards) for part in PARTS]
    read = sum(f.bytes_read for f in forwards)
    return [f"{flops / 1e12:.3f}" for flops in (*parts, sum(parts))] + [f"{read / 1e9:.1f}"]


def floor_table() -> list[str]:
    """Least time of a batch of one on named GPUs, at datasheet and at sustained speeds."""
    rows = []
    for case in (ONE_IMAGE, TWO_IMAGES, CAUSAL):
        causal = case == CAUSAL
        config = published_config(**CAUSAL_CHOICES) if causal else _config(case)
        forwards = chunk_forwards(config, PROMPT)
        for gpu in GPUS:
            sustained_s = floor_s(forwards, gpu.reaching(*SUSTAINED))
            rows.append([
                case, gpu.name,
                f"{1e3 * compute_floor_s(forwards, gpu):.1f}",
                f"{1e3 * bandwidth_floor_s(forwards, gpu):.1f}",
                f"{1e3 * floor_s(forwards, gpu):.1f}",
                f"{1e3 * sustained_s:.1f}",
                f"{1 / sustained_s:.0f}",
                f"{config.chunk_size / sustained_s:.0f}",
            ])  # fmt: skip
    reached = "at {:.0%} / {:.0%}, ms".format(*SUSTAINED)
    head = ("case", "GPU", "compute ms", "memory ms", "floor ms", reached, "chunks/s", "actions/s")
    return _table(head, rows)


def gpu_table() -> list[str]:
    """The datasheet figures behind the floors."""
    rows = [
        [g.name, f"{g.flops_per_s / 1e12:.1f}", f"{g.bytes_per_s / 1e12:.3g}",
         f"{g.memory_bytes / 1e9:.0f}"]
        for g in GPUS
    ]  # fmt: skip
    return _table(("GPU", "dense bf16 TFLOP/s", "TB/s", "GB"), rows)


def adapter_table() -> list[str]:
    """Size of an adapter, and what the bank adds to a forward."""
    config = _config(ONE_IMAGE)
    (forward,) = chunk_forwards(config, PROMPT)
    rows = []
    for rank in (8, 16, 32):
        size, whole = (count_adapter(config, rank, dead=dead) for dead in (False, True))
        copies = [f"{1e3 * size.bytes_bf16 / speed:.1f}" for speed in PCIE_BYTES_PER_S.values()]
        share = slot_flops(config, PROMPT, rank, SLOTS) / forward.flops
        rows.append([
            str(rank), f"{size.modules}", f"{size.parameters:,}", f"{whole.parameters:,}",
            f"{size.bytes_bf16 / 1e6:.1f}", f"{2 * size.bytes_bf16 / 1e6:.1f}", *copies,
            f"{share / SLOTS:.1%}", f"{share:.1%}",
        ])  # fmt: skip
    head = (
        "rank", "modules", "parameters", "with dead modules", "MB bf16", "MB float32",
        *(f"ms over {name}" for name in PCIE_BYTES_PER_S), "FLOPs, 1 adapter",
        f"FLOPs, {SLOTS} masked",
    )  # fmt: skip
    return _table(head, rows)


def training_table() -> list[str]:
    """A LoRA step of one sample: FLOPs and the least time."""
    rows = []
    for case in (ONE_IMAGE, f"discrete, 1 image, prompt padded to {PADDED_PROMPT}", TWO_IMAGES):
        prompt = CASES[case][0]
        for checkpointing in (False, True):
            flops = train_flops(_config(case), prompt, RANK, checkpointing=checkpointing)
            times = [f"{1e3 * flops / gpu.flops_per_s:.1f}" for gpu in GPUS]
            rows.append([case, "yes" if checkpointing else "no", f"{flops / 1e12:.2f}", *times])
    head = ("case", "checkpointing", "TFLOP", *(f"{gpu.name} ms" for gpu in GPUS))
    return _table(head, rows)


def memory_table() -> list[str]:
    """What must be in memory, activations of a forward and the allocator's reserve aside."""
    config = _config(ONE_IMAGE)
    size = count_adapter(config, RANK, dead=False)
    targets = BF16_BYTES * sum(
        layer.count * layer.inputs * layer.outputs
        for layer in list_layers(config, PROMPT)
        if layer.adapted and layer.rows
    )
    causal = published_config(**CAUSAL_CHOICES)
    tokens = causal.sequence_length(PROMPT)
    rows: list[tuple[str, str, int]] = [
        ("all weights, bf16", "serve, train", weight_bytes(config)),
        (f"bank of {SLOTS} adapters and the base, rank {RANK}", "serve",
         (SLOTS + 1) * size.bytes_bf16),
        ("merged copy of one adapter", "serve, optional", targets),
        (f"key-value cache, {tokens} positions", "serve OpenVLA, per sample",
         kv_bytes(causal, tokens)),
        (f"adapter of rank {RANK}: float32 weights, gradients, Adam", "train", size.training_bytes),
        ("inputs of checkpointed blocks, 1 image", "train, per sample",
         checkpointed_bytes(config, PROMPT)),
        ("inputs of checkpointed blocks, 2 images", "train, per sample",
         checkpointed_bytes(_config(TWO_IMAGES), PROMPT)),
    ]  # fmt: skip
    return _table(("what", "for", "GB"), [(*row[:2], f"{row[2] / 1e9:.2f}") for row in rows])


TABLES: dict[str, Callable[[], list[str]]] = {
    "parameters": parameter_table,
    "chunk": chunk_table,
    "floors": floor_table,
    "gpus": gpu_table,
    "adapters": adapter_table,
    "training": training_table,
    "memory": memory_table,
}


def fill_tables(text: str) -> str:
    """`text` with every `<!-- table NAME -->` ... `<!-- end -->` computed anew.

    Raises:
        ValueError: the document's tables are not exactly `TABLES`.
    """
    pattern = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    named = [match.group(2) for match in pattern.finditer(text)]
    if sorted(named) != sorted(TABLES):
        raise ValueError(f"the document has the tables {named}, expected {list(TABLES)}")
    return pattern.sub(lambda m: m.group(1) + "\n".join(TABLES[m.group(2)]()) + m.group(3), text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right; ends with a line break."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def main() -> None:
    """Rewrites the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(fill_tables(text), encoding="utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()

"""The inspection of a model folder as plain lines for people."""

from collections.abc import Iterator
from pathlib import Path

from agent.model.inspection import Inspection

NAMES = {
    "openvla": "causal OpenVLA: one token after another",
    "oft-l1": "OpenVLA-OFT with an L1 regression head",
    "oft-discrete": "OpenVLA-OFT with parallel action tokens",
    "cnn": "small convolutional policy",
}
KEYS_SHOWN = 6


def describe(inspection: Inspection) -> list[str]:
    """One fact a line, then what stands against loading the folder."""
    lines = [f"{Path(inspection.path).resolve().name}: {_kind(inspection)}"]
    lines += [f"  {label:<14}{text}" for label, text in _facts(inspection) if text]
    for title, items in (
        ("assumed, since nothing states it", [f"{k}={v}" for k, v in inspection.assumed.items()]),
        ("ignored", inspection.ignored),
        ("in the way", inspection.problems),
    ):
        if items:
            lines += [f"{title}:", *(f"  {item}" for item in items)]
    return lines


def _kind(inspection: Inspection) -> str:
    if not inspection.variants:
        return "nothing that is served"
    return " or ".join(f"{name} ({NAMES.get(name, 'unknown')})" for name in inspection.variants)


def _facts(inspection: Inspection) -> Iterator[tuple[str, str]]:
    total = sum(inspection.parameters.values())
    types = ", ".join(f"{kind} {count}" for kind, count in inspection.stored_types.items())
    yield "parameters", f"{total:,} in {inspection.tensors} tensors"
    for part, parameters in inspection.parameters.items():
        yield "", f"  {part} {parameters:,}"
    yield "stored", f"{types}; {_size(inspection.size_bytes)} in {_files(inspection)}"
    for text in inspection.geometry:
        yield "network", text
    if inspection.image_size:
        yield "images", f"{_images(inspection)}, {inspection.image_size} px"
    if inspection.action_dim:
        yield "actions", f"{_chunk(inspection)} of {inspection.action_dim} dimensions"
        proprio = inspection.proprio_dim
        yield "proprio", "none" if proprio is None else f"{proprio} dimensions"
    yield "unnorm key", _keys(inspection.unnorm_keys)
    yield "adapter", inspection.adapter
    yield "tokenizer", "tokenizer.json" if inspection.has_tokenizer else "missing"
    yield (
        "preprocessor",
        (
            "preprocessor_config.json"
            if inspection.has_preprocessor
            else "published defaults (no file)"
        ),
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.2f} MB"


def _files(inspection: Inspection) -> str:
    files = [f"{inspection.shards} safetensors file{'s' if inspection.shards > 1 else ''}"]
    return ", ".join([*files, *inspection.components.values()])


def _images(inspection: Inspection) -> str:
    if inspection.num_images is None:
        return "as many as there are cameras (num_images is not stated)"
    return f"{inspection.num_images} a step"


def _chunk(inspection: Inspection) -> str:
    if inspection.chunk_size is None:
        return "1 (openvla) or several (oft-discrete)"
    return f"chunks of {inspection.chunk_size}"


def _keys(keys: tuple[str, ...]) -> str:
    if not keys:
        return "none"
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    name_one = " (name one)" if len(keys) > 1 else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more + name_one

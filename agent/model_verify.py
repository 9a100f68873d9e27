"""Loading a model folder stage by stage, a line each, up to one answer of the policy."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.model.checkpoint import check_folder, load_model, read_config
from agent.model.config import read_json
from agent.model.devices import check_device
from agent.model.errors import ModelFolderError
from agent.model.folder import ModelFolder
from agent.model.policy_model import wrap_network
from agent.model.verification import DEFAULT_INSTRUCTION, answer_greedily, draw_images
from agent.process.instruction import clean_instruction
from agent.process.shown import say
from agent.process.terminal import telling


def verify_folder(
    path: Path,
    architecture: dict[str, Any],
    *,
    unnorm_key: str,
    instruction: str | None,
    device: str,
    dtype: str,
) -> None:
    """Print what was checked, stage by stage.

    Args:
        architecture: config fields that the folder's files do not show.
        unnorm_key: "" takes the only one.
        instruction: None takes the default one.

    Raises:
        ModelFolderError: the first stage that fails says why.
    """
    check_device("--device", device)
    folder = ModelFolder.open(path)
    say(f"files       {len(folder.shards)} of weights, {len(folder.components)} components")
    config = read_config(folder, architecture)
    say(f"config      {config.variant}, {_count_images(config.num_images)}, chunks of "
          f"{config.chunk_size}")  # fmt: skip
    model, _ = check_folder(folder, config)
    state = model.state_dict()
    parameters = sum(tensor.numel() for tensor in state.values())
    say(f"keys        {len(state)} tensors, {parameters:,} parameters: all there, none besides")
    started = time.perf_counter()
    with telling(lambda: "loading the weights"):
        network = load_model(path, getattr(torch, dtype), device, **architecture)
    seconds = time.perf_counter() - started
    say(f"weights     {dtype} on {device}, all finite, {seconds:.1f} s, {_peak()}")
    cameras = [f"image{i}" for i in range(config.num_images)]
    policy = wrap_network(network, path, cameras, unnorm_key, base_sha256="")
    say(f"processing  tokenizer, preprocessor and statistics fit ({config.image_pipeline})")
    started = time.perf_counter()
    try:
        text = DEFAULT_INSTRUCTION if instruction is None else clean_instruction(instruction)
        with telling(lambda: "answering"):
            choices, actions = answer_greedily(policy, draw_images(config.num_images), text)
    except ValueError as error:
        raise ModelFolderError(f"{error}; give another with --instruction") from error
    if not np.isfinite(actions).all():
        raise ModelFolderError(f"the policy's actions are not finite: {actions.tolist()}")
    seconds = time.perf_counter() - started
    say(f"forward     {text!r}, {seconds:.2f} s, {len(np.unique(choices))} different choices")
    for step, action in enumerate(actions):
        say(f"action {step:<4} " + " ".join(f"{value:+8.4f}" for value in action))
    if "num_images" not in {*architecture, *read_json(path / "config.json")}:
        say(f"note        num_images is stated nowhere: checked with {config.num_images}")


def _count_images(count: int) -> str:
    return f"{count} image{'s' if count > 1 else ''}"


def _peak() -> str:
    """Linux counts in KiB."""
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"peak memory of the process {peak_bytes / 1e9:.2f} GB"

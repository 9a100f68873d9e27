"""What the network gets and what it answers, in every shipped way to run a 7B model on LIBERO.

From the composed settings: the raw picture of a recorded trace, turned by the body, prepared by the
server, on its way into the network of a checkpoint of the published layout at tiny width.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import CHUNK, TRACES, Trace, seven_b_settings
from torch import Tensor

from agent.model.images import PUBLISHED_STATISTICS
from agent.model.nano import build_nano_tokenizer
from agent.model.policy_model import PolicyModel, load_policy_model
from agent.model.processing import PROMPT_TEMPLATE
from agent.policy import ActRequest
from agent.vla_policy import VlaPolicy
from deploy.local.settings import RunConfig, compose_run
from sim_bridge.libero.render import turn

pytestmark = pytest.mark.golden

TINY = Path(__file__).parents[2] / "golden" / "openvla_oft"
TOWERS = [
    {"kind": "dinov2", "dim": 32, "depth": 3, "heads": 2, "mlp_dim": 128, "patch_size": 14,
     "registers": 4},
    {"kind": "siglip", "dim": 48, "depth": 4, "heads": 3, "mlp_dim": 179, "patch_size": 14},
]  # fmt: skip
HEADS = ("action_head--100_checkpoint.pt", "proprio_projector--100_checkpoint.pt")
SETTINGS = seven_b_settings()


def write_folder(folder: Path, key: str, heads: bool) -> Path:
    """A published folder: nothing in it but what published ones hold, and the tiny geometry.

    key: of its only statistics.
    """
    names = ["model.safetensors", "preprocessor_config.json", *(HEADS if heads else ())]
    folder.mkdir()
    for name in names:
        shutil.copy(TINY / name, folder / name)
    config = json.loads((TINY / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_towers": TOWERS}))
    statistics = json.loads((TINY / "dataset_statistics.json").read_text())
    (values,) = statistics.values()
    (folder / "dataset_statistics.json").write_text(json.dumps({key: values}))
    told = [trace.told["language"] for trace in TRACES]
    build_nano_tokenizer(told).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=SETTINGS, ids=" ".join)
def shipped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, PolicyModel, Trace]:
    """The composed run, its model on the CPU, and a trace of its suite."""
    folder = tmp_path_factory.mktemp("shipped")
    empty = folder / "composed"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    run = compose_run([*request.param, f"model.model_dir={empty}"])
    suite = run.tree["suite"]["name"]
    trace = next((each for each in TRACES if each.suite == suite), None) or TRACES[0]
    policy = run.processes["agent"]["policy"]
    variant = policy["architecture"]["variant"]
    key = suite if variant == "openvla" else f"{suite}_no_noops"
    checkpoint = write_folder(folder / "checkpoint", key, heads=variant == "oft-l1")
    model = load_policy_model(
        str(checkpoint), policy["architecture"], policy["cameras"], policy["unnorm_key"]
    )
    return run, model, trace


def as_seen(trace: Trace, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What the body gives of the raw pictures before step 0 of episode 0."""
    raw = {camera: trace.picture(0, 0, camera, "raw256") for camera in cameras}
    # MuJoCo's renderer turns the raw image upright before the body gets it.
    return {camera: turn(image[::-1]) for camera, image in raw.items() if image is not None}


def test_the_settings_are_the_published_ones(shipped: tuple[RunConfig, PolicyModel, Trace]) -> None:
    run, _, _ = shipped
    sim, policy = run.processes["sim-0"], run.processes["agent"]["policy"]
    learner = run.processes["learner"]
    assert (sim["image_size"], sim["renderer"], sim["mujoco"]) == (256, "exact", "3.3.2")
    assert (policy["device"], policy["dtype"]) == ("cuda", "bfloat16")
    assert learner["architecture"] == policy["architecture"]
    assert learner["unnorm_key"] == policy["unnorm_key"]
    if sim["protocol"] == "vlacrl":
        assert {task["horizon_steps"] for task in learner["suite"]["tasks"]} == {512}
        assert learner["temperature"] == 1.6


@torch.no_grad()
def test_what_reaches_the_network_is_as_recorded(
    shipped: tuple[RunConfig, PolicyModel, Trace],
) -> None:
    run, model, trace = shipped
    told = trace.told["language"]  # in a suite without a trace, another suite's stands for it
    words = run.processes["agent"]["tasks"].get(trace.slug, {"instruction": told})["instruction"]
    given = trace.arrays()
    inputs: list[tuple[Any, ...]] = []
    policy = VlaPolicy(model, micro_batch=1, adapter_slots=1, adapter_rank=1)
    model.network.vision_backbone.register_forward_pre_hook(lambda _, args: inputs.append(args))
    states: list[Tensor] = []
    if model.config.use_proprio:
        projector = model.network.proprio_projector
        projector.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    proprio = given["proprio"][0, 0].astype(np.float32)
    assert PROMPT_TEMPLATE.format(task=words.lower()) == trace.told["prompt"]
    policy.act([ActRequest(as_seen(trace, model.cameras), proprio, words, "base", 0.0, None)])
    pixels = inputs[0][0]
    stage = "crop224" if model.images.kind == "jpeg-lanczos-crop" else "rlinf224"
    for index, camera in enumerate(model.cameras):
        expected = trace.picture(0, 0, camera, stage)
        assert expected is not None
        wanted = PUBLISHED_STATISTICS.normalise(expected)
        level = 1.0 / 255.0 / min(min(each) for each in PUBLISHED_STATISTICS.stds)
        off = (pixels[0, index] - wanted).abs()
        assert float(off.max()) <= level + 1e-5, camera
        assert float((off > 1e-5).float().mean()) <= 1e-4, camera
    if model.config.use_proprio:
        bounds = model.proprio
        assert bounds is not None
        span = bounds.high - bounds.low + 1e-8
        normalised = (given["proprio"][0, 0] - bounds.low) / span * 2.0 - 1.0
        wanted_P = np.clip(normalised, -1.0, 1.0)
        np.testing.assert_allclose(states[0][0].numpy(), wanted_P, atol=1e-6 / span.min())


def test_what_is_answered_reaches_the_simulator_as_recorded(
    shipped: tuple[RunConfig, PolicyModel, Trace],
) -> None:
    _, model, trace = shipped
    given = trace.arrays()
    normalised = model.actions.bounds.normalise(given["model_actions"])
    sent = model.actions.to_env(normalised.astype(np.float32)).astype(np.float32)
    np.testing.assert_allclose(sent, given["env_actions"], atol=1e-6)
    held = given["model_actions"][..., 6] == 0.5
    assert held.any()
    assert (sent[..., 6][held] == 0.0).all(), "the hand holds"
    assert model.config.chunk_size in (1, CHUNK)

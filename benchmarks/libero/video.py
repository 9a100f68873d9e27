"""Two evaluation episodes of a finished `make libero`, played again side by side.

python -m benchmarks.libero.video RUN   writes benchmarks/reports/libero-nano.gif

The first slot of the first task that the base failed and the last adapter solved. Noise is a
function of the slot, so both episodes repeat as they were: an outcome or a number of steps other
than the recorded one is an error.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from agent.config import PolicyConfig
from agent.policy import ActRequest, slot_hash
from agent.vla_loading import load_vla_policy
from agent.vla_policy import VlaPolicy
from agent.wire.messages import BASE_VERSION
from benchmarks.libero.learning import VIDEO
from deploy.local.ledgers import RecordError
from deploy.local.records import Records, read_records
from sim_bridge.libero.body import LiberoBody, LiberoSuite
from sim_bridge.libero.render import Renderer
from sim_bridge.robot import clip_action

SIDE = 160  # pixels of each half
STEPS_A_FRAME = 2  # of 1/20 s
HELD_FRAMES = 10  # on the last picture of the longer half
COLOURS = 64


@dataclass(frozen=True)
class Slot:
    """One recorded evaluation episode: what it was asked, and what came of it."""

    meta: dict[str, Any]
    outcome: str
    steps: int


def main() -> None:
    """Writes the picture of the named run folder."""
    torch.set_num_threads(1)
    if len(sys.argv) != 2:
        sys.exit("benchmarks.libero.video: expected the run folder of `make libero`")
    try:
        records = read_records(Path(sys.argv[1]))
        pair = before_and_after(records)
        halves = [play_again(records, slot) for slot in pair]
    except RecordError as error:
        sys.exit(f"benchmarks.libero.video: {error}")
    write(halves, VIDEO)
    print(f"{VIDEO}: {pair[0].meta['slot_id']} and {pair[1].meta['slot_id']}")


def before_and_after(records: Records) -> tuple[Slot, Slot]:
    """The first slot of the first task that went from failure to success. Raises RecordError."""
    train = records.results["train_tasks"]
    ends = {
        end["slot_id"]: end["outcome"] == "success"
        for end in records.ends
        if end["phase"] == "eval" and end["counted"]
    }
    states = range(records.config["suite"]["eval_init_states"])
    slots = range(records.config["learner"]["evaluation"]["slots_per_state"])
    for state in states:
        for slot in slots:
            first, last = (
                f"eval/{row}/rollout/{train[0]}/{state}#{slot}" for row in (0, len(train))
            )
            if not ends[first] and ends[last]:
                return _recorded(records, first), _recorded(records, last)
    raise RecordError(f"{train[0]}: no slot went from failure to success")


def _recorded(records: Records, slot_id: str) -> Slot:
    path = records.run_dir / "agent" / "agent.db"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        (row,) = connection.execute(
            "SELECT meta, outcome, steps FROM episodes WHERE slot_id = ? AND counted = 1",
            (slot_id,),
        ).fetchall()
    finally:
        connection.close()
    return Slot(json.loads(row[0]), row[1], row[2])


def play_again(records: Records, slot: Slot) -> list[np.ndarray]:
    """Frames u8[SIDE, SIDE, 3] of the episode. Raises RecordError if it ends in another way."""
    sim = _yaml(records, "sim-0.yaml")
    meta, size = slot.meta, sim["image_size"]
    suite = LiberoSuite(sim["suite"], size, sim["protocol"], sim["renderer"])
    body = suite.make_body(meta["task"])
    try:
        frames, outcome, steps = _play(_policy(records, meta["version"]), body, meta)
    finally:
        body.close()
    if (outcome, steps) != (slot.outcome, slot.steps):
        raise RecordError(
            f"{meta['slot_id']}: recorded {slot.outcome} after {slot.steps} steps, now {outcome} "
            f"after {steps}; use the machine and the packages that the run had"
        )
    return frames


def _policy(records: Records, version: str) -> VlaPolicy:
    policy = load_vla_policy(PolicyConfig(**_yaml(records, "agent.yaml")["policy"]))
    if version != BASE_VERSION:
        policy.install(policy.stage(version, records.run_dir / "adapters" / version))
    return policy


def _play(
    policy: VlaPolicy, body: LiberoBody, meta: dict[str, Any]
) -> tuple[list[np.ndarray], str, int]:
    body.reset(meta["split"], meta["init_state"])
    large = Renderer(body.env, SIDE, "exact")  # after `fast` simplified the scene for both
    noise_slot = slot_hash(meta["noise_key"], meta["slot_index"])
    frames, steps, looks = [large.render()["agentview"]], 0, 0
    while steps < meta["horizon_steps"]:
        seen = body.observe()
        request = ActRequest(
            seen.images,
            seen.proprio,
            meta["instruction"],
            meta["version"],
            meta["temperature"],
            (meta["run_seed"], noise_slot, looks),
        )
        looks += 1
        (result,) = policy.act([request])
        for action_A in result.actions_KA[: meta["horizon_steps"] - steps]:
            body.apply(clip_action(body, action_A)[0])
            steps += 1
            if steps % STEPS_A_FRAME == 0:
                frames.append(large.render()["agentview"])
            if body.success:
                large.close()
                return [*frames, frames[-1]], "success", steps
    large.close()
    return frames, "timeout", steps


def _yaml(records: Records, name: str) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(records.run_dir / "config" / name))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def write(halves: list[list[np.ndarray]], path: Path) -> None:
    """Both halves beside each other; the shorter one waits on its last picture."""
    frames = max(map(len, halves)) + HELD_FRAMES
    gap = np.full((SIDE, 4, 3), 255, np.uint8)
    pictures = []
    for number in range(frames):
        before, after = (half[min(number, len(half) - 1)] for half in halves)
        picture = np.concatenate([before, gap, after], axis=1)
        pictures.append(Image.fromarray(picture).quantize(COLOURS))
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=50 * STEPS_A_FRAME,  # ms
        loop=0,
        optimize=True,
    )


if __name__ == "__main__":
    main()

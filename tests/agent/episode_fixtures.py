"""Small valid episodes for the tests of everything that stores them."""

from __future__ import annotations

import time

import numpy as np

from agent.episode import ChunkRecord, EndRecord, EpisodeMeta, mint_episode_id
from agent.wire.messages import Order

CHUNK_STEPS, ACTION_DIM, PROPRIO_DIM = 4, 3, 5


def make_order(order_id: str = "train/0/0/0/0", slots: int = 2, **changes: object) -> Order:
    values = {
        "order_id": order_id,
        "suite": "toy",
        "task": "left",
        "instruction": "move left",
        "split": "train",
        "init_state": 3,
        "horizon_steps": 12,
        "slots": slots,
        "phase": "train",
        "version": "base",
        "temperature": 1.0,
        "run_seed": 0,
        "noise_key": order_id,
    }
    return Order(**(values | changes))


def make_meta(**changes: object) -> EpisodeMeta:
    values = {
        "episode_id": mint_episode_id(),
        "order_id": "train/0/0/0/0",
        "slot_id": "",
        "suite": "toy",
        "task": "left",
        "instruction": "move left",
        "split": "train",
        "init_state": 3,
        "phase": "train",
        "version": "base",
        "horizon_steps": 12,
        "temperature": 1.0,
        "run_seed": 0,
        "noise_key": "train/0/0/0/0",
        "slot_index": 0,
        "policy": "noop",
        "base_sha256": "0" * 64,
        "client_id": "client-1",
        "started_unix_s": time.time(),
    }
    return EpisodeMeta(**(values | changes))


def make_chunk(step_index: int, image_size: int = 8, seed: int = 0) -> ChunkRecord:
    rng = np.random.default_rng((seed, step_index))
    pixels = rng.integers(0, 256, (2, image_size, image_size, 3), np.uint8)
    return ChunkRecord(
        step_index=step_index,
        images={"agentview": pixels[0], "wrist": pixels[1]} if image_size else {},
        proprio=rng.standard_normal(PROPRIO_DIM, np.float32),
        choices_KA=rng.integers(0, 256, (CHUNK_STEPS, ACTION_DIM), np.int32),
        logprobs_KA=-rng.random((CHUNK_STEPS, ACTION_DIM), np.float32),
        actions_KA=rng.standard_normal((CHUNK_STEPS, ACTION_DIM), np.float32),
        version="base",
    )


def make_end(chunks: int, outcome: str = "success", **changes: object) -> EndRecord:
    values = {
        "outcome": outcome,
        "steps": chunks * CHUNK_STEPS,
        "executed_TK": np.ones((chunks, CHUNK_STEPS), np.uint8),
        "reason": "",
        "sealed_unix_s": time.time(),
    }
    return EndRecord(**(values | changes))

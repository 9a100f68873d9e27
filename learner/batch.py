"""Episodes to flat chunk samples, and samples to batches of a fixed shape. Numpy only.

Axes: B chunk samples, N images of one observation, K actions of a chunk, A action dimensions,
P proprio dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agent.episode import ChunkRecord, Episode
from agent.wire.messages import Executed
from learner.pictures import join_pictures, stack_pictures
from learner.randomness import keyed_rng
from learner.unusable import UnusableEpisode

TRAINED_CODES = (Executed.RUN, Executed.LIMITED)
PICTURES = "images_BNHWC"  # the column that may be of mixed sizes


class BatchError(UnusableEpisode):
    """An episode holds what cannot be trained on; the message names it and says why."""


@dataclass(frozen=True)
class Trajectory:
    """One episode with its advantage; `index` is its place among all collected trajectories."""

    index: int
    episode: Episode
    advantage: float


@dataclass(frozen=True)
class Chunks:
    """Observations with the chunks of actions chosen there: all that scoring them needs."""

    images_BNHWC: np.ndarray  # u8; (B, N) objects where sizes differ, see learner/pictures.py
    proprio_BP: np.ndarray  # f32, robot units
    choices_BKA: np.ndarray  # what was drawn: i64 action bins, or f32 normalised actions
    mask_BK: np.ndarray  # f32, 1 where the action was executed as the policy's own
    temperatures_B: np.ndarray  # f32
    instruction_B: np.ndarray  # str

    def __len__(self) -> int:
        return len(self.instruction_B)


@dataclass(frozen=True)
class Samples(Chunks):
    """The chunk samples of one iteration's usable groups.

    A policy version stays with each trajectory, so that stale ones can be told apart.
    """

    logprobs_BKA: np.ndarray  # f32, recorded when sampled [nats]
    advantages_B: np.ndarray  # f32
    weights_B: np.ndarray  # f32, 1 / (L A); the number of trajectories is divided out later
    importance_BKA: np.ndarray  # f32, on each token's loss; 1 unless corrected
    trajectory_B: np.ndarray  # i64, index among all collected trajectories
    step_index_B: np.ndarray  # i64
    version_B: np.ndarray  # str
    episode_id_B: np.ndarray  # str


def build_samples(trajectories: Sequence[Trajectory], cameras: Sequence[str]) -> Samples | None:
    """Flatten trajectories, in the order given; None when there is not one chunk to train on.

    L counts a trajectory's unmasked actions. Environments stop at done, so what was executed is
    what came up to and including the first done.

    Raises:
        BatchError: images were not kept, executed codes do not fit the chunks, or a chunk was
            made by another version than the one the episode is pinned to.
    """
    parts = [part for trajectory in trajectories if (part := _flatten(trajectory, cameras))]
    if not parts:
        return None
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return Samples(**{name: join_column(name, values) for name, values in columns.items()})


def join_column(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """One column of chunks that follow one another."""
    return join_pictures(parts) if name == PICTURES else np.concatenate(parts)


def split_trajectories(
    count: int, parts: int, seed: int, update_id: int, epoch: int = 0
) -> list[np.ndarray]:
    """All trajectory indices 0..count-1 in `parts` minibatches, a pure function of the key.

    Those of degenerate groups are dealt out too: they keep their share of the denominator.
    """
    stream = f"minibatches/{epoch}" if epoch else "minibatches"
    order = keyed_rng(seed, stream, update_id).permutation(count)
    return np.array_split(order, parts)


def micro_batches(
    samples: Chunks, rows: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows in batches of exactly `size`: (row indices i64[size], fill f32[size]).

    A short batch repeats its last row with fill 0, so that every kernel sees one shape and a
    row's result does not depend on its company. One batch holds one instruction: prompts of
    different lengths never meet.
    """
    instructions = samples.instruction_B[rows]
    for instruction in dict.fromkeys(instructions):
        same = rows[instructions == instruction]
        for start in range(0, len(same), size):
            part = same[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part))])
            yield padded, (np.arange(size) < len(part)).astype(np.float32)


def _flatten(trajectory: Trajectory, cameras: Sequence[str]) -> dict | None:
    episode, meta = trajectory.episode, trajectory.episode.meta
    chunks = episode.chunks
    if not chunks:
        return None
    _check(episode, cameras)
    mask_BK = np.isin(episode.end.executed_TK, TRAINED_CODES).astype(np.float32)
    length, count, dims = mask_BK.sum(), len(chunks), chunks[0].choices_KA.shape[1]
    if length == 0:
        return None

    def full(value: float) -> np.ndarray:
        return np.full(count, value, dtype=np.float32)

    return {
        PICTURES: stack_pictures([[chunk.images[name] for name in cameras] for chunk in chunks]),
        "proprio_BP": np.stack([chunk.proprio for chunk in chunks]).astype(np.float32),
        "choices_BKA": _stack_choices(chunks),
        "logprobs_BKA": np.stack([chunk.logprobs_KA for chunk in chunks]).astype(np.float32),
        "mask_BK": mask_BK,
        "advantages_B": full(trajectory.advantage),
        "weights_B": full(1.0 / (length * dims)),
        "importance_BKA": np.ones((count, *chunks[0].choices_KA.shape), dtype=np.float32),
        "temperatures_B": full(meta.temperature),
        "trajectory_B": np.full(count, trajectory.index, dtype=np.int64),
        "step_index_B": np.array([chunk.step_index for chunk in chunks], dtype=np.int64),
        "instruction_B": np.array([meta.instruction] * count),
        "version_B": np.array([chunk.version for chunk in chunks]),
        "episode_id_B": np.array([meta.episode_id] * count),
    }


def _stack_choices(chunks: Sequence[ChunkRecord]) -> np.ndarray:
    choices_BKA = np.stack([chunk.choices_KA for chunk in chunks])
    # An index tensor must be int64; normalised actions stay the float32 that was drawn.
    return choices_BKA.astype(np.int64) if choices_BKA.dtype == np.int32 else choices_BKA


def _check(episode: Episode, cameras: Sequence[str]) -> None:
    name = episode.meta.episode_id
    shape = (len(episode.chunks), episode.chunks[0].choices_KA.shape[0])
    if episode.end.executed_TK.shape != shape:
        raise BatchError(
            name,
            f"executed codes have shape {episode.end.executed_TK.shape}, its chunks {shape}",
        )
    for chunk in episode.chunks:
        missing = [camera for camera in cameras if camera not in chunk.images]
        if missing:
            raise BatchError(
                name,
                f"step {chunk.step_index}: cameras {missing} were not recorded, it has "
                f"{sorted(chunk.images)}",
            )
        if chunk.version != episode.meta.version:
            raise BatchError(
                name,
                f"step {chunk.step_index}: made by {chunk.version}, but the episode is "
                f"pinned to {episode.meta.version}",
            )

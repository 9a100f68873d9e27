"""A replay memory: chunks of tasks already learned, and what a policy answered to them.

Axes as in learner/batch.py; X is whatever shape one answer has.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from agent.episode import EpisodeMeta
from agent.wire.errors import PerennialError
from agent.wire.messages import Phase
from learner.batch import PICTURES, Chunks, join_column
from learner.pictures import pack_pictures, picture_bytes, unpack_pictures
from learner.randomness import keyed_rng

PREFIX = "memory/"
TRAIN_SPLIT = "train"


class MemoryRefused(PerennialError):
    """What may not be remembered: anything not of a task that is already learned."""


@dataclass(frozen=True)
class Remembered(Chunks):
    """All that a memory holds, in the order of insertion."""

    targets_BX: np.ndarray  # f32 (B, *X), what the policy's answers are held to; (B, 0) if nothing
    task_B: np.ndarray  # str


class Memory:
    """Chunks of learned tasks. It is part of every checkpoint, pictures and all."""

    def __init__(self) -> None:
        self.rows: Remembered | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks of which something is remembered, in the order of insertion."""
        return [] if self.rows is None else list(dict.fromkeys(self.rows.task_B.tolist()))

    def insert(
        self,
        task: str,
        chunks: Chunks,
        learned: Sequence[str],
        metas: Iterable[EpisodeMeta] = (),
        targets_BX: np.ndarray | None = None,
    ) -> None:
        """Remember chunks of a task.

        Args:
            learned: the tasks whose learning is over.
            metas: of the episodes that the chunks are from; none for an expert's.

        Raises:
            MemoryRefused: the task is not learned yet (it is learned now, later, or held out), is
                in the memory already, or an episode is of another task or for evaluation.
        """
        if task not in learned:
            raise MemoryRefused(
                f"task {task}: a memory takes tasks already learned, which are {list(learned)}; "
                "insert it when its last iteration is over"
            )
        if task in self.tasks:
            raise MemoryRefused(f"task {task} is in the memory already, which keeps what it has")
        for meta in metas:
            _refuse_others(meta, task)
        if targets_BX is None:
            targets_BX = np.zeros((len(chunks), 0), np.float32)
        columns = {name: getattr(chunks, name) for name in _names(Chunks)}
        columns |= {"targets_BX": targets_BX, "task_B": np.full(len(chunks), task)}
        if self.rows is not None:
            held = self.rows
            columns = {n: join_column(n, [getattr(held, n), new]) for n, new in columns.items()}
        self.rows = Remembered(**columns)

    def retarget(self, targets_BX: np.ndarray) -> None:
        """Hold the policy's answers to others from now on; one for each chunk, in their order.

        Raises:
            ValueError: they are not as many.
        """
        count = 0 if self.rows is None else len(self.rows)
        if self.rows is None or len(targets_BX) != count:
            raise ValueError(f"expected targets of {count} chunks, got {len(targets_BX)}")
        self.rows = replace(self.rows, targets_BX=targets_BX)

    def figures(self) -> dict[str, float]:
        """Its size, in chunks and in megabytes (10^6 bytes)."""
        if self.rows is None:
            return {"memory_chunks": 0.0, "memory_mb": 0.0}
        others = [getattr(self.rows, name) for name in _names(Remembered) if name != PICTURES]
        size_bytes = picture_bytes(self.rows.images_BNHWC) + sum(each.nbytes for each in others)
        return {"memory_chunks": float(len(self.rows)), "memory_mb": size_bytes / 1e6}

    def draw(self, count: int, seed: int, update_id: int, step: int) -> np.ndarray:
        """Row indices i64[count], uniform with replacement; a pure function of the key.

        Raises:
            ValueError: nothing is remembered.
        """
        if self.rows is None:
            raise ValueError("nothing to draw from an empty memory")
        return keyed_rng(seed, f"memory/{update_id}", step).integers(len(self.rows), size=count)

    def state(self) -> dict[str, Tensor]:
        """Its columns by name; strings as the bytes of a JSON list."""
        if self.rows is None:
            return {}
        tensors = pack_pictures(PREFIX + PICTURES, self.rows.images_BNHWC)
        others = [name for name in _names(Remembered) if name != PICTURES]
        return tensors | {PREFIX + name: _to_tensor(getattr(self.rows, name)) for name in others}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """As `state` returned them."""
        columns = {n: tensors[PREFIX + n] for n in _names(Remembered) if PREFIX + n in tensors}
        self.rows = None
        if columns:
            arrays = {n: _to_array(n, tensor) for n, tensor in columns.items() if n != PICTURES}
            arrays[PICTURES] = unpack_pictures(PREFIX + PICTURES, tensors)
            self.rows = Remembered(**arrays)


def thin_out(chunks: Chunks, count: int, rng: np.random.Generator) -> Chunks:
    """At most `count` of the chunks, drawn without replacement, in their order.

    Chunks of which nothing was executed are left out; so there may be none.
    """
    usable = np.flatnonzero(chunks.mask_BK.any(axis=1))
    rows = np.sort(rng.choice(usable, size=min(count, len(usable)), replace=False))
    return Chunks(**{name: getattr(chunks, name)[rows] for name in _names(Chunks)})


def _refuse_others(meta: EpisodeMeta, task: str) -> None:
    found = (meta.task, meta.split, meta.phase)
    if found != (task, TRAIN_SPLIT, Phase.TRAIN):
        raise MemoryRefused(
            f"episode {meta.episode_id} (task, split, phase: {', '.join(found)}) is not of the "
            f"training episodes of {task}, and a memory of {task} takes no others"
        )


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


_STRINGS = ("instruction_B", "task_B")


def _to_tensor(column: np.ndarray) -> Tensor:
    if column.dtype.kind == "U":
        column = np.frombuffer(json.dumps(column.tolist()).encode(), np.uint8).copy()
    return torch.from_numpy(np.ascontiguousarray(column))


def _to_array(name: str, tensor: Tensor) -> np.ndarray:
    array = tensor.cpu().numpy()
    return np.array(json.loads(array.tobytes())) if name in _STRINGS else array

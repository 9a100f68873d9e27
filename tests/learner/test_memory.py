"""The replay memory: what it takes, how it draws, and that a checkpoint holds all of it."""

import dataclasses

import numpy as np
import pytest
from micro_fixtures import CAMERAS, INSTRUCTIONS, micro_policy, play

from learner.batch import Trajectory, build_samples, micro_batches
from learner.continual.memory import Memory, MemoryRefused, thin_out
from learner.randomness import keyed_rng


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Two of task "left", whose chunks differ in number, and one with a longer prompt."""
    policy = micro_policy(tmp_path_factory.mktemp("memory"))
    return [
        play(policy, 0, chunks=3),
        play(policy, 1, chunks=2),
        play(policy, 2, chunks=4, instruction=INSTRUCTIONS[1]),
    ]


def chunks_of(*episodes):
    return build_samples([Trajectory(i, e, 0.0) for i, e in enumerate(episodes)], CAMERAS)


@pytest.fixture
def memory(episodes):
    """Two learned tasks with different instructions, the second with targets like the first."""
    memory = Memory()
    for task, learned, one in (("a", ("a",), episodes[0]), ("b", ("a", "b"), episodes[2])):
        chunks = chunks_of(one)
        targets = np.arange(len(chunks) * 2, dtype=np.float32).reshape(-1, 2)
        memory.insert(task, chunks, learned, targets_BX=targets)
    return memory


@pytest.mark.parametrize("task", ["b", "c", "h"], ids=["current", "future", "held-out"])
def test_a_task_that_is_not_learned_is_refused_and_changes_nothing(task, episodes):
    memory = Memory()
    with pytest.raises(MemoryRefused, match=rf"task {task}: .*\['a'\]"):
        memory.insert(task, chunks_of(episodes[0]), ["a"])
    assert memory.rows is None


@pytest.mark.parametrize(
    "change",
    [{"task": "b"}, {"split": "eval"}, {"split": "held_out"}, {"phase": "eval"},
     {"phase": "serve"}],
    ids=str,
)  # fmt: skip
def test_one_episode_of_another_task_split_or_phase_is_refused(change, episodes):
    good = dataclasses.replace(episodes[0].meta, task="a")
    Memory().insert("a", chunks_of(episodes[0]), ["a", "b"], [good])
    memory = Memory()
    bad = dataclasses.replace(good, **change)
    with pytest.raises(MemoryRefused, match=next(iter(change.values()))):
        memory.insert("a", chunks_of(*episodes[:2]), ["a", "b"], [good, bad])
    assert memory.rows is None


def test_a_task_is_remembered_once(memory, episodes):
    with pytest.raises(MemoryRefused, match="already"):
        memory.insert("a", chunks_of(episodes[1]), ["a", "b"])
    assert memory.tasks == ["a", "b"]


def test_its_size_is_that_of_all_it_holds(memory, episodes):
    assert Memory().figures() == {"memory_chunks": 0.0, "memory_mb": 0.0}
    figures = memory.figures()
    assert figures["memory_chunks"] == 3 + 4
    pictures = 7 * len(CAMERAS) * 16 * 16 * 3
    assert pictures < figures["memory_mb"] * 1e6 < pictures + 7 * 1500


def test_a_checkpoint_holds_it_whole(memory):
    again = Memory()
    again.load_state(memory.state())
    for field in dataclasses.fields(memory.rows):
        before, after = getattr(memory.rows, field.name), getattr(again.rows, field.name)
        assert before.dtype.kind == after.dtype.kind
        assert (before == after).all(), field.name
    assert again.figures() == memory.figures()
    assert again.tasks == ["a", "b"]
    again.load_state(Memory().state())
    assert again.rows is None


def test_what_is_drawn_follows_from_seed_update_and_step(memory):
    drawn = memory.draw(64, 3, 5, 1)
    assert (drawn == memory.draw(64, 3, 5, 1)).all()
    for other in ((4, 5, 1), (3, 6, 1), (3, 5, 2)):
        assert (drawn != memory.draw(64, *other)).any()
    assert set(drawn) == set(range(7))
    with pytest.raises(ValueError, match="empty"):
        Memory().draw(1, 0, 0, 0)


def test_batches_never_mix_the_prompts_of_two_tasks(memory):
    drawn = memory.draw(64, 0, 0, 0)
    batches = list(micro_batches(memory.rows, drawn, 8))
    assert sum(fill.sum() for _, fill in batches) == 64
    assert {len(set(memory.rows.instruction_B[rows])) for rows, _ in batches} == {1}
    assert len({memory.rows.instruction_B[rows[0]] for rows, _ in batches}) == 2


def test_thinning_out_leaves_executed_chunks_alone_and_in_order(episodes):
    chunks = chunks_of(*episodes)
    mask_BK = np.array(chunks.mask_BK)
    mask_BK[[1, 4]] = 0
    chunks = dataclasses.replace(chunks, mask_BK=mask_BK)
    whole = thin_out(chunks, 100, keyed_rng(0, "test", 0))
    assert (whole.proprio_BP == np.delete(chunks.proprio_BP, [1, 4], axis=0)).all()
    part = thin_out(chunks, 3, keyed_rng(0, "test", 0))
    places = [int(np.flatnonzero((chunks.proprio_BP == p).all(1))[0]) for p in part.proprio_BP]
    assert places == sorted(set(places))
    assert len(places) == 3
    again = thin_out(chunks, 3, keyed_rng(0, "test", 0))
    assert (again.images_BNHWC == part.images_BNHWC).all()


def test_targets_are_renewed_for_all_chunks_or_for_none(memory):
    chunks, targets = memory.rows.choices_BKA, np.ones((len(memory.rows), 4), np.float32)
    memory.retarget(targets)
    assert memory.rows.targets_BX is targets
    assert memory.rows.choices_BKA is chunks
    with pytest.raises(ValueError, match=f"targets of {len(targets)} chunks, got 1"):
        memory.retarget(targets[:1])
    with pytest.raises(ValueError, match="of 0 chunks"):
        Memory().retarget(targets)


def test_pictures_of_other_sizes_are_remembered_and_outlast_a_checkpoint(episodes):
    memory, usual = Memory(), chunks_of(episodes[0])
    shapes = [(24, 20, 3), (9, 30, 3)]
    pictures = np.empty((len(usual), usual.images_BNHWC.shape[1]), dtype=object)
    for index in np.ndindex(*pictures.shape):
        shape = shapes[index[1] % 2]
        pictures[index] = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) + index[0]
    memory.insert("a", usual, ["a"])
    memory.insert("b", dataclasses.replace(usual, images_BNHWC=pictures), ["a", "b"])
    other_bytes = sum(picture.nbytes for picture in pictures.flat)
    plain = Memory()
    plain.insert("a", usual, ["a"])
    small_mb = plain.figures()["memory_mb"]
    assert memory.figures()["memory_mb"] - small_mb > other_bytes / 1e6
    restored = Memory()
    restored.load_state(memory.state())
    held = restored.rows.images_BNHWC
    assert held.shape == (2 * len(usual), pictures.shape[1])
    for index in np.ndindex(*pictures.shape):
        assert (held[index] == usual.images_BNHWC[index]).all()
        assert (held[len(usual) + index[0], index[1]] == pictures[index]).all()
    assert restored.rows.instruction_B.tolist() == memory.rows.instruction_B.tolist()

"""LIBERO's HDF5 demonstrations as shards: what was seen, with the action that followed it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from learner import demos_import
from learner.demonstrations import DemonstrationError, load_demonstrations
from learner.libero_hdf5 import open_file

T, K, SIZE = 9, 3, 8
TASK = "KITCHEN_SCENE3_turn_on_the_stove"
NOOPS = (2, 3, 6)  # of the steps


def episode(seed: int) -> dict[str, np.ndarray]:
    """T steps: row t of each observation is what is seen before action t; row T is the end."""
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.uniform(0.01, 0.05, (T + 1, 7)), axis=0)
    actions = rng.uniform(-1, 1, (T, 7))
    actions[:, 6] = np.where(np.arange(T) < 5, -1.0, 1.0)
    actions[NOOPS, :6] = 0.0
    pictures = rng.integers(0, 256, (2, T + 1, SIZE, SIZE, 3), np.uint8)
    return {
        "actions": actions,
        "states": np.concatenate([np.zeros((T + 1, 1)), joints, rng.normal(size=(T + 1, 30))], 1),
        "agentview_rgb": pictures[0],
        "eye_in_hand_rgb": pictures[1],
        "ee_states": rng.normal(size=(T + 1, 6)),
        "gripper_states": rng.normal(size=(T + 1, 2)),
        "joint_states": joints + 1e-3,  # measured a little late
    }


def write(path: Path, episodes: list[dict[str, np.ndarray]], seen: str = "after") -> None:
    """As LIBERO wrote them (observations after the action), or as made anew (before)."""
    first = seen == "after"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = f"chiliocosm/bddl_files/libero_90/{TASK}.bddl"
        data.attrs["macros_image_convention"] = "opengl"
        for number, arrays in reversed(list(enumerate(episodes))):
            group = data.create_group(f"demo_{number}")
            group["actions"], group["states"] = arrays["actions"], arrays["states"][:T]
            for name in arrays.keys() - {"actions", "states"}:
                group[f"obs/{name}"] = arrays[name][first : T + first]


def run(path: Path, out: Path, *words: str) -> int:
    return demos_import.main(
        [str(path), "--from=libero-hdf5", f"--out={out}", f"--chunk={K}", *words]
    )


@pytest.mark.parametrize("seen", ["after", "before"])
def test_a_frame_is_what_was_seen_before_its_actions(tmp_path: Path, seen: str) -> None:
    path, episodes = tmp_path / "stove_demo.hdf5", [episode(0), episode(1)]
    write(path, episodes, seen)
    assert run(path, tmp_path / "out", "--keep-noops", "--stride=2") == 0
    found = load_demonstrations([tmp_path / "out"])
    assert found.slugs == (TASK.lower(),)
    assert found.instructions == ("turn on the stove",)
    # The first observation is not in a file that shows what was seen after each action.
    steps = np.arange(1, T, 2) if seen == "after" else np.arange(0, T, 2)
    assert len(found) == 2 * len(steps)
    for number, arrays in enumerate(episodes):
        rows = slice(number * len(steps), (number + 1) * len(steps))
        still = np.zeros((K, 7))
        still[:, 6] = arrays["actions"][-1, 6]
        padded = np.concatenate([arrays["actions"], still]).astype(np.float32)
        assert np.array_equal(found.actions[rows], [padded[t : t + K] for t in steps])
        proprio = np.concatenate([arrays["ee_states"], arrays["gripper_states"]], 1)
        assert np.array_equal(found.proprio[rows], proprio[steps].astype(np.float32))
        for camera, name in (("agentview", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")):
            turned = np.rot90(arrays[name][steps], 2, axes=(1, 2))
            assert np.array_equal(getattr(found, camera)[rows], turned)


def test_steps_without_a_command_are_left_out(tmp_path: Path) -> None:
    """Of 2, 3 and 6 the gripper does not move either; at 5 it does."""
    path, arrays = tmp_path / "stove_demo.hdf5", episode(0)
    arrays["actions"][5, :6] = 0.0
    write(path, [arrays], "before")
    assert run(path, tmp_path / "out") == 0
    found = load_demonstrations([tmp_path / "out"])
    kept = [t for t in range(T) if t not in NOOPS]
    assert np.array_equal(found.actions[:, 0], arrays["actions"][kept].astype(np.float32))
    turned = np.rot90(arrays["agentview_rgb"][kept], 2, axes=(1, 2))
    assert np.array_equal(found.agentview, turned)


def test_an_interrupted_import_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "stove_demo.hdf5", tmp_path / "out"
    write(path, [episode(0), episode(1)])
    assert run(path, out, "--image-size=4") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    whole = load_demonstrations([out])
    assert whole.agentview.shape[1:] == (4, 4, 3)
    first, second = sorted(out.glob("*.npz"))
    kept = first.stat().st_mtime_ns
    second.unlink()
    assert run(path, out, "--image-size=4") == 0
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert first.stat().st_mtime_ns == kept
    again = load_demonstrations([out])
    assert np.array_equal(again.wrist, whole.wrist)
    assert np.array_equal(again.actions, whole.actions)
    assert run(path, out, "--image-size=5") == 1
    assert "other demonstrations" in capsys.readouterr().err


def test_the_same_import_again_changes_nothing_nor_what_is_anothers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "stove_demo.hdf5", tmp_path / "out"
    write(path, [episode(0), episode(1)])

    def files(folder: Path) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in folder.iterdir()}

    assert run(path, out) == 0
    said, before = capsys.readouterr().out.splitlines()[-1], files(out)
    assert run(path, out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert files(out) == before
    (tmp_path / "link").symlink_to(out)  # to another disk, say
    assert run(path, tmp_path / "link") == 0
    assert files(out) == before
    (out / "meta.json").unlink()
    before = files(out)
    for given in (out, path, path / "below"):
        capsys.readouterr()
        assert run(path, given) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "--out: " in line
        assert "name a" in line
    assert files(out) == before


def test_what_is_no_demonstration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(path: Path) -> str:
        assert run(path, tmp_path / "out") == 1
        return capsys.readouterr().err

    path = tmp_path / "x_demo.hdf5"
    assert "x_demo.hdf5" in refusal(path)
    path.write_bytes(b"no HDF5")
    assert "expected a LIBERO HDF5 file" in refusal(path)
    for name, value, word in (
        ("demo_0/obs/ee_states", np.full((T, 6), np.nan), "finite"),
        ("demo_0/obs/agentview_rgb", np.zeros((T, SIZE, SIZE, 3)), "uint8"),
        ("demo_0/actions", np.zeros((T, 6)), r"shape (9, 6)"),
        ("demo_0/obs/joint_states", None, "missing"),
    ):
        write(path, [episode(0)])
        with h5py.File(path, "r+") as file:
            del file["data"][name]
            if value is not None:
                file["data"][name] = value
        said = refusal(path)
        assert "demo_0" in said
        assert word in said
    assert not (tmp_path / "out").exists()


def test_what_is_refused_leaves_a_set_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, out = [tmp_path / f"{name}_demo.hdf5" for name in "ab"], tmp_path / "out"
    write_task(paths[0], [episode(0)])
    assert run_all(paths, out) == demos_import.SKIPPED
    before = {each.name: each.read_bytes() for each in out.iterdir()}
    paths[0].unlink()
    write_task(paths[1], [episode(1)])
    with h5py.File(paths[1], "r+") as file:
        del file["data/demo_0/obs"]
    assert run_all(paths, out) == 1
    assert "can be used" in capsys.readouterr().err
    assert {each.name: each.read_bytes() for each in out.iterdir()} == before


def damage(path: Path, name: str) -> None:
    """Zeroes part of the first compressed block of an array."""
    with h5py.File(path, "r") as file:
        block = file["data"][name].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    start = block.byte_offset + block.size // 3
    data[start : start + block.size // 3] = bytes(block.size // 3)
    path.write_bytes(data)


def compress(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        pictures = file["data"][name][()]
        del file["data"][name]
        file["data"].create_dataset(name, data=pictures, compression="gzip")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("demo_1/obs/agentview_rgb", "agentview_rgb is damaged: fetch the file again"),
        ("demo_1/actions", "finite"),
        ("demo_1", "no group obs"),
    ],
)
def test_one_bad_demonstration_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, said: str
) -> None:
    path, whole, out = tmp_path / "x_demo.hdf5", tmp_path / "whole.hdf5", tmp_path / "out"
    write(path, [episode(0), episode(1), episode(2)])
    if "rgb" in bad:
        compress(path, bad)
        whole.write_bytes(path.read_bytes())
        damage(path, bad)
    else:
        whole.write_bytes(path.read_bytes())
        with h5py.File(path, "r+") as file:
            if bad == "demo_1":
                del file["data/demo_1/obs"]
            else:
                file["data"][bad][0] = np.nan
    assert run(path, out) == demos_import.SKIPPED
    streams = capsys.readouterr()
    (line,) = [line for line in streams.err.splitlines() if "skipped" in line]
    assert f"{path}: data/demo_1" in line
    assert said in line
    assert "2 demonstrations" in streams.out
    assert "skipped: 1 demonstrations" in streams.out
    assert [p.name for p in sorted(out.glob("*.npz"))] == ["shard-00000.npz", "shard-00002.npz"]
    assert len(load_demonstrations([out])) > 0
    path.write_bytes(whole.read_bytes())  # fetched again
    assert run(path, out) == 0
    assert len(list(out.glob("*.npz"))) == 3


LIBRARY_WORDS = (
    "synchronously",
    "eof",
    "heap",
    "H5",
    "address",
    "buffer",
    "Errno",
    "Error",
    "null",
)


@pytest.mark.parametrize("part", ["cut", "head", "anywhere"])
def test_damage_is_said_in_our_words(tmp_path: Path, part: str) -> None:
    """HDF5's own name neither file nor place, nor say what to do."""
    path, rng = tmp_path / "x_demo.hdf5", np.random.default_rng(0)
    write(path, [episode(0)])
    compress(path, "demo_0/obs/agentview_rgb")
    whole, said = path.read_bytes(), set()
    for _ in range(120):
        data = bytearray(whole)
        if part == "cut":
            del data[rng.integers(len(data)) :]
        else:
            start = rng.integers(1000 if part == "head" else len(data))
            data[start : start + 40] = rng.bytes(40)
        path.write_bytes(data)
        try:
            with open_file(path) as file:
                for name in file.names:
                    file.read(name)
        except DemonstrationError as error:
            said.add(str(error))
    assert len(said) > 3
    for line in said:
        assert line.startswith(str(path))
        assert not any(word in line for word in LIBRARY_WORDS), line
    if part == "cut":
        assert any(re.search(r"is cut off, [\d,]+ of [\d,]+ bytes are there", x) for x in said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("obs/ee_states", "ee_states (float64) are not finite numbers that float32 can hold"),
        ("actions", "actions is packed with HDF5 filter 32999, which is not there: have h5repack"),
    ],
)
def test_what_cannot_be_kept_or_unpacked_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    path = tmp_path / "x_demo.hdf5"
    write(path, [episode(0)])
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_0"]
        values = demo[name][()]
        del demo[name]
        if name == "actions":  # zeros: what grows by packing is kept as it is
            demo.create_dataset(name, data=np.zeros_like(values), compression="lzf")
        else:
            demo[name] = values * 1e300  # finite, and infinite as float32
    if name == "actions":  # another filter's number: one of a plugin that is not here
        data = path.read_bytes()
        at = data.index(b"lzf\0") - 8
        assert data[at : at + 2] == (32000).to_bytes(2, "little")
        path.write_bytes(data[:at] + (32999).to_bytes(2, "little") + data[at + 2 :])
    assert run(path, tmp_path / "out") == 1
    assert f"{path}: data/demo_0: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("bddl_file_name", 7, "expected text"),
        ("bddl_file_name", "a/\x1b[2Jpwned\n.bddl", "task named"),
        ("bddl_file_name", "x/.bddl", "task named"),
        ("bddl_file_name", "KITCHEN_SCENE3_-.bddl", "says nothing"),
        ("macros_image_convention", "open\u202ecv\n", "convention"),
    ],
)
def test_text_in_a_file_is_checked_and_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], attribute: str, value: object, said: str
) -> None:
    path = tmp_path / "x_demo.hdf5"
    write(path, [episode(0)])
    with h5py.File(path, "r+") as file:
        file["data"].attrs[attribute] = value
    assert run(path, tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert said in line
    assert line.isprintable()


def test_text_may_be_stored_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x_demo.hdf5"
    write(path, [episode(0)])
    with h5py.File(path, "r+") as file:
        file["data"].attrs["bddl_file_name"] = np.bytes_(f"C:\\libero\\{TASK}.bddl")
        file["data"].attrs["macros_image_convention"] = b"opengl"
    assert run(path, tmp_path / "out") == 0
    assert load_demonstrations([tmp_path / "out"]).instructions == ("turn on the stove",)


def test_a_size_that_a_file_claims_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x_demo.hdf5"
    write(path, [episode(0)])
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        shape = (T, 200_000, 200_000, 3)
        chunks = (1, 64, 64, 3)
        file["data/demo_0/obs"].create_dataset("agentview_rgb", shape, np.uint8, chunks=chunks)
    assert run(path, tmp_path / "out") == 1
    assert "more than 8 GiB" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 30, 500])
def test_a_damaged_shard_or_list_is_named(tmp_path: Path, left: int) -> None:
    path, out = tmp_path / "x_demo.hdf5", tmp_path / "out"
    write(path, [episode(0)])
    assert run(path, out) == 0
    (shard,) = out.glob("*.npz")
    shard.write_bytes(shard.read_bytes()[:left])
    cut = r"shard-00000\.npz is damaged or cut off: make it anew"
    with pytest.raises(DemonstrationError, match=cut):
        load_demonstrations([out])
    meta = out / "meta.json"
    meta.write_bytes(meta.read_bytes()[:left])
    if left < 100:
        with pytest.raises(DemonstrationError, match=r"meta\.json is damaged"):
            load_demonstrations([out])


def test_frames_of_tasks_that_nobody_listed_are_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "x_demo.hdf5", tmp_path / "out"
    write(path, [episode(0)])
    assert run(path, out) == 0
    (shard,) = out.glob("*.npz")
    with np.load(shard) as archive:
        arrays = dict(archive)
    np.savez(shard, **{**arrays, "task": arrays["task"] + 3})
    with pytest.raises(DemonstrationError, match=r"shard-00000.*tasks 3 to 3.*lists 1"):
        load_demonstrations([out])


def stand_in_text(path: Path) -> None:
    path.write_text("this is no HDF5\n")


def stand_in_nothing(path: Path) -> None:
    path.write_bytes(b"")


def stand_in_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def stand_in_half(path: Path) -> None:
    write(path, [episode(5)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def stand_in_other(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)


def stand_in_nobody(path: Path) -> None:
    write(path, [])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (stand_in_text, "is no HDF5 file"),
        (stand_in_nothing, "is empty"),
        (stand_in_pointer, "git lfs pull"),
        (stand_in_half, "is cut off, "),
        (stand_in_other, "no group 'data'"),
        (stand_in_nobody, "no demonstration in it"),
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is no file"),
        (lambda path: path.symlink_to("nowhere"), "is a link to 'nowhere'"),
        (lambda path: None, "No such file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_none_does_not_stop_the_others(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    said: str,
) -> None:
    """Where it stood, nothing is numbered; once it is there, it comes behind the others."""
    paths, out = [tmp_path / f"{name}_demo.hdf5" for name in "abc"], tmp_path / "out"
    write_task(paths[0], [episode(0), episode(1)])
    make(paths[1])
    write_task(paths[2], [episode(2)])
    for _ in range(2):  # a second time changes nothing
        assert run_all(paths, out) == demos_import.SKIPPED
        streams = capsys.readouterr()
        (line,) = [line for line in streams.err.splitlines() if "skipped" in line]
        assert str(paths[1]) in line
        assert said in line
        assert "3 demonstrations" in streams.out
        assert "skipped: 1 files" in streams.out
        found = load_demonstrations([out])
        assert found.slugs == ("a", "c")
        assert len(list(out.glob("*.npz"))) == 3
    remove(paths[1])
    write_task(paths[1], [episode(3), episode(4)])
    assert run_all(paths, out) == 0
    again = load_demonstrations([out])
    assert again.slugs == ("a", "c", "b")
    assert np.array_equal(again.actions[: len(found)], found.actions)
    assert sorted(set(again.task[len(found) :])) == [2]
    # A file that was imported and is none any more keeps its place, and so do those behind it.
    remove(paths[0])
    make(paths[0])
    assert run_all(paths, out) == demos_import.SKIPPED
    assert str(paths[0]) in capsys.readouterr().err
    kept = load_demonstrations([out])
    assert kept.slugs == again.slugs
    assert np.array_equal(kept.actions, again.actions)


def test_where_every_file_is_none_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a_demo.hdf5", tmp_path / "b_demo.hdf5"]
    stand_in_text(paths[0])
    paths[1].mkdir()
    assert run_all(paths, tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{paths[0]} is no HDF5 file" in line
    assert f"{paths[1]} is a folder" in line
    assert not (tmp_path / "out").exists()


def test_a_set_of_an_earlier_release_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lists every file, and not how many demonstrations each has."""
    paths, out = [tmp_path / f"{name}_demo.hdf5" for name in "ab"], tmp_path / "out"
    for path in paths:
        write_task(path, [episode(0), episode(1)])
    assert run_all(paths, out) == 0
    meta = json.loads((out / "meta.json").read_text())
    del meta["sources"]
    (out / "meta.json").write_text(json.dumps(meta))
    paths[0].rename(tmp_path / "away")
    assert run_all(paths, out) == 1  # nobody can say how the shards behind it are numbered
    assert str(paths[0]) in capsys.readouterr().err
    (tmp_path / "away").rename(paths[0])
    assert run_all(paths, out) == 0


def test_another_number_of_demonstrations_is_another_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shards behind it would be another file's."""
    paths, out = [tmp_path / f"{name}_demo.hdf5" for name in "ab"], tmp_path / "out"
    for path in paths:
        write_task(path, [episode(0)])
    assert run_all(paths, out) == 0
    write_task(paths[0], [episode(0), episode(1)])
    assert run_all(paths, out) == 1
    assert "2 demonstrations of 'a'" in capsys.readouterr().err


def write_task(path: Path, episodes: list[dict[str, np.ndarray]]) -> None:
    """A file of a task that is named as the file is."""
    write(path, episodes)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["bddl_file_name"] = path.stem.removesuffix("_demo") + ".bddl"


def run_all(paths: list[Path], out: Path) -> int:
    words = ["--from=libero-hdf5", f"--out={out}", f"--chunk={K}"]
    return demos_import.main([*map(str, paths), *words])


def remove(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)

"""What `perennial episodes` prints. Reads only, also while the server runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from agent.durable import StorageError
from agent.episode import EpisodeCorrupt, read_episode, read_prefix
from agent.journal import EPISODES_NAME, LEDGER_NAME
from agent.ledger import EpisodeRow, EpisodeState, LedgerReader
from agent.process.shown import LINE_MAX_CHARS, printable
from agent.recovery import QUARANTINE_NAME, episode_path


def state_folder(folder: Path) -> Path:
    """The agent's state directory in (or at) `folder`. Raises StorageError."""
    for candidate in (folder / "agent", folder):
        if (candidate / LEDGER_NAME).is_file():
            return candidate
    raise StorageError(f"{folder}: no {LEDGER_NAME} here or in agent/; give the folder of a run")


def _reader(folder: Path) -> LedgerReader:
    return LedgerReader(folder / LEDGER_NAME)


def list_episodes(folder: Path) -> int:
    """One line per episode, then totals; returns the exit status, as the others do."""
    reader = _reader(folder)
    rows = reader.episodes()
    for row in rows:
        counted = "counted" if row.counted else "-"
        print(
            f"{row.episode_id}  {row.state:<11}  {row.outcome or '-':<10}  {counted:<7}  "
            f"{row.steps:>4} steps  {row.version:<19}  {row.phase:<5}  {row.task}"
            + (f"  ({printable(row.reason)})" if row.reason else "")
        )
    counted_rows = [row for row in rows if row.counted]
    temperatures = {order.order_id: order.temperature for order in reader.orders()}

    def key_of(row: EpisodeRow) -> tuple[str, str, str]:
        temperature = temperatures.get(row.order_id)  # a robot's own tasks have no order
        return row.phase, row.task, "" if temperature is None else f"  T = {temperature:g}"

    successes = Counter(key_of(row) for row in counted_rows if row.outcome == "success")
    for key, trials in sorted(Counter(map(key_of, counted_rows)).items()):
        phase, task, at = key
        print(f"{phase:<5}  {successes[key]:>5} of {trials:>5} succeeded  {task}{at}")
    states = Counter(row.state for row in rows)
    print(f"{len(rows)} episodes: " + ", ".join(f"{n} {s}" for s, n in sorted(states.items())))
    return 0


def show_episode(folder: Path, wanted: str) -> int:
    """One episode; `wanted` is its id or an unambiguous beginning or end of it."""
    rows = [
        row
        for row in _reader(folder).episodes()
        if row.episode_id.startswith(wanted) or row.episode_id.endswith(wanted)
    ]
    if len(rows) != 1:
        raise StorageError(f"{len(rows)} episodes match {wanted!r}, expected one; see `list`")
    row = rows[0]
    for name in row.__slots__:
        print(f"{name:<12} {printable(getattr(row, name), LINE_MAX_CHARS)}")
    path = _file_of(folder, row)
    if path is None:
        print("no file")
        return 0
    prefix = read_prefix(path)
    print(f"{'file':<12} {path}")
    for chunk in prefix.chunks:
        images = ", ".join(
            f"{printable(name, 80)} {image.shape}" for name, image in chunk.images.items()
        )
        executed = prefix.end.executed_TK[chunk.step_index].tolist() if prefix.end else "?"
        print(
            f"chunk {chunk.step_index:>3}  mean logprob {float(chunk.logprobs_KA.mean()):8.4f}  "
            f"executed {executed}  images: {images or 'not kept'}"
        )
    if prefix.problem:
        print(f"stops here: {printable(prefix.problem)}")
    return 0


def verify_episodes(folder: Path) -> int:
    """Check the hash and content of every sealed or acknowledged episode; 1 if one is not so."""
    problems = checked = 0
    for row in _reader(folder).episodes():
        if row.state not in (EpisodeState.SEALED, EpisodeState.ACKED):
            continue
        problem = _problem_of(row, _file_of(folder, row))
        checked += 1
        if problem:
            problems += 1
            print(f"{row.episode_id}  {row.state}  {printable(problem, LINE_MAX_CHARS)}")
    print(f"{checked} episodes checked, {problems} damaged or missing")
    return 1 if problems else 0


def _problem_of(row: EpisodeRow, path: Path | None) -> str:
    if path is None:
        return "file is missing"
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != row.sha256:
        return f"{path}: SHA-256 {sha256[:12]}, sealed with {row.sha256[:12]}"
    try:
        episode = read_episode(data)
    except EpisodeCorrupt as error:
        return f"{path}: {error}"
    if (episode.meta.episode_id, episode.end.outcome) != (row.episode_id, row.outcome):
        return f"{path}: holds {episode.meta.episode_id} {episode.end.outcome}"
    return ""


def _file_of(folder: Path, row: EpisodeRow) -> Path | None:
    """The agent's own file, or the learner's copy beside it once the learner has acknowledged."""
    own = folder / EPISODES_NAME
    for place in (own, own / QUARANTINE_NAME, folder.parent / "learner" / EPISODES_NAME):
        path = episode_path(place, row.episode_id)
        if path.is_file():
            return path
    return None

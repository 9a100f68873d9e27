"""What a crash has left, brought back to a state in which every file has one trusted row.

Run at boot, before anything is written, by the holder of the lock. It may itself be killed at any
point and run again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from agent.durable import make_folder, replace_file, storage_errors, sync_folder
from agent.episode import EndRecord, EpisodeMeta, EpisodePrefix, read_prefix
from agent.episode_writer import EpisodeWriter
from agent.ledger import EpisodeState, Ledger, SealedRow
from agent.process.clock import unix_s
from agent.process.instruction import clean_instruction
from agent.wire.messages import BASE_VERSION, Order, Outcome

RESTART_REASON = "server restarted"
QUARANTINE_NAME = "quarantine"
_REWRITE_PREFIX = ".rewrite-"
PROBE_NAME = ".probe"  # of whether a full disk takes something again

_log = logging.getLogger(__name__)

Distrusted = dict[str, tuple[str, str]]  # episode id or file name -> (kind of reason, reason)


@dataclass(slots=True)
class Recovered:
    """What the server starts from.

    orders: as posted. filled: {slot id: counted episode id}. aborted: episodes that were open when
    the server died, now sealed as aborted. activations: every version made active, in order.
    quarantined: {episode id or file name: why} of this boot; distrusted: how many for which kind of
    reason (missing, altered, torn, foreign, no_row).
    """

    orders: list[Order]
    filled: dict[str, str]
    activations: list[str]
    aborted: list[str] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    distrusted: Counter[str] = field(default_factory=Counter)

    @property
    def active_version(self) -> str:
        return self.activations[-1] if self.activations else BASE_VERSION


def episode_path(folder: Path, episode_id: str) -> Path:
    return folder / f"{episode_id}.mcap"


def recover_state(folder: Path, ledger: Ledger) -> Recovered:
    """Bring the episode files in `folder` and the ledger into agreement.

    Raises StorageError, OSError or sqlite3.Error when the disk refuses; run it again then.
    """
    for leftover in folder.glob(f"{_REWRITE_PREFIX}*"):
        leftover.unlink()  # the torn original is still there
    (folder / PROBE_NAME).unlink(missing_ok=True)
    quarantined = _check_sealed(folder, ledger)
    aborted, distrusted = seal_open(folder, ledger, RESTART_REASON)
    quarantined |= distrusted
    _sweep(folder, ledger, quarantined)
    reasons = {name: reason for name, (_, reason) in quarantined.items()}
    for name, reason in reasons.items():
        _log.warning("quarantined %s: %s", name, reason)
    return Recovered(
        [_spelt_anew(order) for order in ledger.orders()],
        ledger.held() | ledger.filled(),
        [row.version for row in ledger.activations()],
        [row.episode_id for row in aborted],
        reasons,
        Counter(kind for kind, _ in quarantined.values()),
    )


def _spelt_anew(order: Order) -> Order:
    """An order as it would be taken today: those of earlier servers kept stray white space."""
    try:
        return replace(order, instruction=clean_instruction(order.instruction))
    except ValueError:
        return order  # its episodes are refused one by one, with the reason


def _check_sealed(folder: Path, ledger: Ledger) -> Distrusted:
    """Quarantine every sealed row whose file is missing or altered."""
    quarantined: Distrusted = {}
    for row in ledger.unacked(after_seq=0, limit=-1):
        path = episode_path(folder, row.episode_id)
        if not path.exists():
            quarantined[row.episode_id] = "missing", "sealed, but its file is missing"
            continue
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != row.sha256:
            why = f"SHA-256 {sha256}, sealed with {row.sha256}"
            quarantined[row.episode_id] = "altered", why
    with ledger.transaction():
        for episode_id, (_, reason) in quarantined.items():
            ledger.quarantine_episode(episode_id, reason)
    return quarantined


def seal_open(
    folder: Path, ledger: Ledger, reason: str, only: Collection[str] | None = None
) -> tuple[list[SealedRow], Distrusted]:
    """Seal every open episode, or those of the ids `only`, as aborted, with what can be read.

    Returns the rows, and what could not be trusted; these are quarantined in the ledger. It may be
    repeated after an error.
    """
    sealed: dict[str, tuple[EndRecord, str, int]] = {}
    distrusted: Distrusted = {}
    for episode_id, meta in ledger.metas(EpisodeState.OPEN).items():
        if only is not None and episode_id not in only:
            continue
        if meta is None:
            distrusted[episode_id] = "torn", "what the ledger holds of it is damaged"
            continue
        path = episode_path(folder, meta.episode_id)
        prefix = EpisodePrefix(meta)
        if path.exists() and path.stat().st_size:
            prefix = read_prefix(path)
        if prefix.meta == meta:
            sealed[meta.episode_id] = _rewrite(path, meta, prefix, reason)
        elif prefix.meta is None:
            distrusted[meta.episode_id] = "torn", f"torn beyond reading: {prefix.problem}"
        else:
            why = "holds another episode than the ledger says"
            distrusted[meta.episode_id] = "foreign", why
    sync_folder(folder)
    with ledger.transaction():
        rows = [
            ledger.seal_episode(episode_id, end, False, sha256, size_bytes)
            for episode_id, (end, sha256, size_bytes) in sealed.items()
        ]
        for episode_id, (_, why) in distrusted.items():
            ledger.quarantine_episode(episode_id, why)
    return rows, distrusted


def _rewrite(
    path: Path, meta: EpisodeMeta, prefix: EpisodePrefix, reason: str
) -> tuple[EndRecord, str, int]:
    """Put a whole file with the readable chunks and an aborted end in place of the torn one."""
    chunk_steps = prefix.chunks[0].choices_KA.shape[0] if prefix.chunks else 0
    end = EndRecord(
        outcome=Outcome.ABORTED,
        steps=0,  # what was executed of the last chunks is not known, so nothing is claimed
        executed_TK=np.zeros((len(prefix.chunks), chunk_steps), np.uint8),
        reason=reason,
        sealed_unix_s=unix_s(),
    )
    temporary = path.with_name(_REWRITE_PREFIX + path.name)
    temporary.unlink(missing_ok=True)  # of an attempt that the disk refused
    writer = EpisodeWriter(temporary, meta)
    try:
        for chunk in prefix.chunks:
            writer.append(chunk)
        sha256, size_bytes = writer.seal(end)
    except OSError:
        writer.abandon()
        raise
    os.replace(temporary, path)
    return end, sha256, size_bytes


def _sweep(folder: Path, ledger: Ledger, quarantined: Distrusted) -> None:
    """Remove the files of acknowledged episodes; set aside those that no row vouches for."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        row = ledger.episode(path.stem) if path.suffix == ".mcap" else None
        if row is None:
            quarantined[path.name] = "no_row", "no ledger row"
            set_aside(path, "no ledger row")
        elif row.state == EpisodeState.QUARANTINED:
            set_aside(path, row.reason)
        elif row.state == EpisodeState.ACKED:
            path.unlink()
    sync_folder(folder)


def set_aside(path: Path, reason: str) -> None:
    """Move a file to the quarantine beside it, with a note that says why. Raises StorageError."""
    folder = path.parent / QUARANTINE_NAME
    with storage_errors(path):
        make_folder(folder)
        target = folder / path.name
        copies = count(1)
        while target.exists():
            target = folder / f"{path.stem}.{next(copies)}{path.suffix}"
        replace_file(target.with_name(f"{target.name}.reason"), f"{reason}\n".encode())
        os.rename(path, target)
        sync_folder(folder)

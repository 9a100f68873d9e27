"""`perennial demos export`: recorded episodes as a data set in another format."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from agent.process import run_command
from agent.process.arguments import whole_number
from agent.process.paths import user_path
from agent.process.shown import complain, say

DEFAULT_RATE_HZ = 20


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 written, 1 nothing to write or not writable, 2 bad arguments."""
    arguments = _parser().parse_args(argv)

    from agent.wire.errors import PerennialError  # after the parser: help is instant

    try:
        counts = export(arguments.folder, arguments.out, arguments.rate_hz)
    except (PerennialError, OSError) as error:
        complain("perennial demos export", error)
        return 1
    say(f"{arguments.out}: {counts.pop('episodes')} episodes, {counts.pop('frames')} frames")
    for reason, count in counts.items():
        say(f"left out: {count} {reason}")
    return 0


def export(folder: Path, out: Path, rate_hz: int) -> Counter[str]:
    """Writes the LeRobot v3 data set `out`; returns "episodes", "frames", reason left out -> count.

    Raises RecordingError if there is nothing to write, LeRobotError for what the format cannot
    hold, StorageError.
    """
    from agent.durable import new_folder
    from agent.process.terminal import counting
    from learner.lerobot_dataset import LeRobotWriter
    from learner.recording import LeftOut, RecordingError, episode_paths, read_recording

    counts: Counter[str] = Counter(episodes=0, frames=0)
    paths = episode_paths(folder)
    with (
        new_folder(out) as root,
        LeRobotWriter(root, rate_hz) as writer,
        counting("episodes", len(paths)) as count,
    ):
        for path in paths:
            count.advance()
            try:
                recording = read_recording(path)
            except LeftOut as reason:
                counts[str(reason)] += 1
                continue
            writer.add(recording)
            counts["episodes"] += 1
            counts["frames"] += len(recording)
        if not counts["episodes"]:
            reasons = ", ".join(f"{n} {why}" for why, n in counts.items() if n)
            raise RecordingError(f"{folder}: no episode to export ({reasons or 'no .mcap file'})")
        writer.finish()
    return counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perennial demos export", description=__doc__)
    parser.add_argument("folder", type=user_path, help="a run, or any folder with episodes (.mcap)")
    parser.add_argument("--to", choices=["lerobot-v3"], required=True, help="the format")
    parser.add_argument("--out", type=user_path, required=True, help="folder of the data set")
    parser.add_argument(
        "--rate-hz",
        type=whole_number(1, 1000),
        default=DEFAULT_RATE_HZ,
        help="control steps per second (20)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)

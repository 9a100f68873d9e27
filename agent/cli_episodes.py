"""`perennial episodes`: what was recorded, one episode in full, whether every file is intact."""

from __future__ import annotations

import argparse

from agent.process import run_command
from agent.process.paths import user_path
from agent.process.shown import complain


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 fine, 1 a damaged or missing episode, 2 nothing to read."""
    arguments = _parser().parse_args(argv)

    from agent import episode_listing  # after the parser: help must load no numpy
    from agent.wire.errors import PerennialError

    try:
        folder = episode_listing.state_folder(arguments.folder)
        if arguments.action == "list":
            return episode_listing.list_episodes(folder)
        if arguments.action == "show":
            return episode_listing.show_episode(folder, arguments.episode_id)
        return episode_listing.verify_episodes(folder)
    except (PerennialError, OSError) as error:
        complain("perennial episodes", error)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perennial episodes", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("list", "one line per episode, then totals per task"),
        ("show", "one episode: where it comes from, its chunks, its end"),
        ("verify", "read every file, check every hash"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("folder", type=user_path, help="a run's folder, or its agent folder")
        if name == "show":
            action.add_argument("episode_id", help="the id, or its unambiguous beginning or end")
    return parser


if __name__ == "__main__":
    run_command(main)

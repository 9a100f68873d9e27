"""`perennial demos import`: demonstrations in another format as shards to train on."""

from __future__ import annotations

import argparse

from agent.process import run_command
from agent.process.arguments import whole_number
from agent.process.paths import user_path
from agent.process.shown import complain, say

SKIPPED = 3  # exit status
_EPILOG = """\
example:
  perennial demos import --from libero-hdf5 libero_spatial/*.hdf5 --out demos --image-size 64

Killed at any moment, the same command goes on where it was. A demonstration that is damaged, or a
file that is none, is named and skipped (exit status 3); with the file mended, the same command adds
it.
"""


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 imported, 1 nothing that can be used, 2 bad arguments, 3 imported but for
    some demonstrations or files, each of which was named.
    """
    arguments = _parser().parse_args(argv)

    from agent.wire.errors import PerennialError  # after the parser: help is instant

    try:
        from learner.libero_import import ImportSettings, import_files

        settings = ImportSettings(
            arguments.chunk, arguments.stride, arguments.image_size, arguments.keep_noops
        )
        imported = import_files(arguments.paths, arguments.out, settings)
    except (PerennialError, OSError) as error:
        complain("perennial demos import", error)
        return 1
    say(f"{arguments.out}: {imported.demonstrations} demonstrations, {imported.frames} frames")
    skipped = [
        f"{number} {what}"
        for number, what in (
            (imported.skipped, "demonstrations"),
            (imported.skipped_files, "files"),
        )
        if number
    ]
    if skipped:
        print(f"skipped: {' and '.join(skipped)}, named above")
        return SKIPPED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perennial demos import",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count = whole_number(1, 1000)
    parser.add_argument(
        "paths", type=user_path, nargs="+", metavar="FILE", help="one for each task"
    )
    parser.add_argument("--from", choices=["libero-hdf5"], required=True, help="the format")
    parser.add_argument("--out", type=user_path, required=True, help="folder of the shards")
    parser.add_argument("--chunk", type=count, default=8, help="actions per label (8)")
    parser.add_argument("--stride", type=count, default=1, help="control steps between frames (1)")
    parser.add_argument("--image-size", type=whole_number(2, 4096), help="pixels (as in the files)")
    parser.add_argument(
        "--keep-noops",
        action="store_true",
        help="keep steps in which the robot was told nothing",
    )
    return parser


if __name__ == "__main__":
    run_command(main)

"""`perennial demos collect`: records a scripted expert, as frames to clone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from agent.process import BAD_INPUT, FAILED, run_command
from agent.process.arguments import whole_number, whole_numbers
from agent.process.optional import describe_failed_import
from agent.process.paths import user_path
from agent.process.shown import complain
from agent.wire.errors import ConfigError, PerennialError

_EPILOG = """\
`perennial demos import --help`: demonstrations in another format, as such frames.
`perennial demos export --help`: recorded episodes in another format.

Killed at any moment, the same command goes on where it was.

examples:
  perennial demos collect --suite tabletop --out demos --workers 2
  perennial demos collect --suite libero_spatial --tasks 0,1,2 --out demos --frames 20000
"""
TABLETOP = "tabletop"


_count = whole_number(1, 1_000_000_000)

# Fields of a suite's DemoConfig, which has the default; a suite takes those it has.
_SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "frames": (_count, "how many (tabletop 100000, LIBERO 40000)"),
    "seed": (whole_number(0, 2**63 - 1), "of all randomness (0)"),
    "chunk": (_count, "actions per label (tabletop 5, LIBERO 8)"),
    "shard_frames": (_count, "frames per file (tabletop 10000, LIBERO 1000)"),
    "image_size": (_count, "pixels (64)"),
    "operators": (str, "tabletop: who demonstrates, expert or misjudging (expert)"),
    "tasks": (whole_numbers(0, 999), "LIBERO: indices into the suite, with commas (0 to 9)"),
    "stride": (_count, "LIBERO: control steps between frames (2)"),
    "renderer": (str, "LIBERO: exact or fast (fast)"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 recorded, 1 failed while recording, 2 bad arguments."""
    chosen = vars(_parser().parse_args(argv))
    settings = {name: chosen[name] for name in _SETTINGS if chosen[name] is not None}
    try:
        _collect(chosen["suite"], settings, chosen["out"], chosen["workers"])
    except ConfigError as error:
        complain("perennial demos", error)
        return BAD_INPUT
    except (PerennialError, ValueError, OSError, RuntimeError) as error:
        complain("perennial demos", error)
        return FAILED
    return 0


def _collect(suite: str, settings: dict[str, Any], out: Path, workers: int) -> None:
    """Writes the shards that `out` lacks.

    Raises ConfigError for an unknown suite, a setting it does not have, or a missing package.
    """
    extra = TABLETOP if suite == TABLETOP else "libero"
    try:
        if suite == TABLETOP:
            from sim_bridge.tabletop import demos as tabletop

            _refuse_others(suite, settings, tabletop.DemoConfig.__dataclass_fields__)
            tabletop.generate(tabletop.DemoConfig(**settings), out, workers)
        else:
            from sim_bridge.libero import demos as libero

            _refuse_others(suite, settings, libero.DemoConfig.__dataclass_fields__)
            libero.generate(libero.DemoConfig(suite, **settings), out, workers)
    except ImportError as error:
        raise ConfigError(
            f"--suite {suite} needs a package that is missing ({error}); "
            f"pip install 'perennial-vla[{extra}]'"
        ) from error
    except Exception as error:
        if failure := describe_failed_import(error):
            raise ConfigError(f"--suite {suite}: {failure}") from error
        raise


def _refuse_others(suite: str, settings: dict[str, Any], known: Container[str]) -> None:
    for name in settings:
        if name not in known:
            raise ConfigError(f"--{name.replace('_', '-')}: not a setting of the suite '{suite}'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perennial demos",
        description="Demonstrations: collect them with a scripted expert, import, export.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "record a scripted expert under disturbances"
    collect = actions.add_parser("collect", help=summary, description=summary)
    collect.add_argument("--suite", required=True, help="tabletop, or a LIBERO suite")
    collect.add_argument("--out", type=user_path, required=True, help="folder of the shards")
    collect.add_argument("--workers", type=whole_number(1, 1024), default=1, help="processes (1)")
    for name, (parse, text) in _SETTINGS.items():
        collect.add_argument(f"--{name.replace('_', '-')}", type=parse, help=text)
    return parser


if __name__ == "__main__":
    run_command(main)

"""The suites the bridge can drive, by name; a suite's packages are imported when it is made."""

from __future__ import annotations

from collections.abc import Callable

from agent.wire.errors import ConfigError
from sim_bridge.robot import Suite


def make_suite(name: str, image_size: int) -> Suite:
    """The suite `name`; images are `image_size` pixels a side where the suite can choose.

    Raises ConfigError for an unknown suite, naming the known ones, or one that cannot run here.
    """
    if name not in _FACTORIES:
        known = ", ".join(sorted(_FACTORIES))
        raise ConfigError(f"suite: unknown suite '{name}'; known: {known}")
    try:
        return _FACTORIES[name](image_size)
    except ImportError as error:
        raise ConfigError(
            f"suite '{name}' needs a package that is missing ({error}); "
            f"pip install 'perennial-vla[{name}]'"
        ) from error


def _tabletop(image_size: int) -> Suite:
    from sim_bridge.tabletop.body import TabletopSuite

    return TabletopSuite(image_size)


def _toy(image_size: int) -> Suite:
    from sim_bridge.toy import ToySuite

    return ToySuite()


_FACTORIES: dict[str, Callable[[int], Suite]] = {"tabletop": _tabletop, "toy": _toy}

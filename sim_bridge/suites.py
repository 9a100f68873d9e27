"""The suites the bridge can drive, by name; a suite's packages are imported when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.process.optional import describe_failed_import
from agent.wire.errors import ConfigError
from sim_bridge.config import SimConfig
from sim_bridge.libero.tasks import SUITES as LIBERO_SUITES
from sim_bridge.perturb.names import split_suite
from sim_bridge.perturb.suite import PerturbedSuite
from sim_bridge.robot import Suite


def make_suite(config: SimConfig) -> Suite:
    """The suite `config.suite`, as the rest of `config` wants it where it can choose.

    `NAME-AXIS-AXIS` is the suite NAME, perturbed (`sim_bridge.perturb.names`).

    Raises ConfigError for an unknown suite, naming the known ones, or one that cannot run here.
    """
    name, perturbations = split_suite(config.suite)
    make: Callable[[SimConfig], Suite]
    if config.gymnasium.env_id:  # a suite of the user's, under a name that nobody takes for ours
        if name in _FACTORIES:
            raise ConfigError(
                f"suite: '{name}' is one that comes with Perennial; give the suite of "
                "gymnasium.env_id another name"
            )
        extra, make = "gymnasium", _gymnasium
    elif name in _FACTORIES:
        extra, make = _FACTORIES[name]
    else:
        known = ", ".join(sorted(_FACTORIES))
        raise ConfigError(f"suite: unknown suite '{name}'; known: {known}, or set gymnasium.env_id")
    try:
        suite = make(replace(config, suite=name))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"suite '{config.suite}' needs a package that is missing ({error}); "
            f"pip install 'perennial-vla[{extra}]'"
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"suite '{config.suite}': a library of the system is missing ({error}); if OpenCV "
            "asks for one of a display: pip install --no-deps opencv-python-headless"
        ) from error
    except Exception as error:
        if failure := describe_failed_import(error):
            raise ConfigError(f"suite '{config.suite}': {failure}") from error
        raise
    return PerturbedSuite(suite, config.suite, perturbations) if perturbations else suite


def longest_turn_s(suite: str) -> float:
    """What a reset or a chunk of one body may take, where that is more than a fraction of a second.

    Others' environments compile their models when they reset, on cores that are not theirs alone.
    """
    return 0.0 if split_suite(suite)[0] in _LIGHT else 60.0


def _tabletop(config: SimConfig) -> Suite:
    from sim_bridge.tabletop.body import TabletopSuite

    return TabletopSuite(config.image_size)


def _toy(config: SimConfig) -> Suite:
    from sim_bridge.toy import ToySuite

    return ToySuite()


def _libero(config: SimConfig) -> Suite:
    from sim_bridge.libero.body import LiberoSuite

    return LiberoSuite(
        config.suite, config.image_size, config.protocol, config.renderer, config.mujoco
    )


def _gymnasium(config: SimConfig) -> Suite:
    from sim_bridge.gymnasium_suite import GymnasiumSuite

    return GymnasiumSuite(config.suite, config.gymnasium)


# Name -> the extra with its packages, and how it is made.
_FACTORIES: dict[str, tuple[str, Callable[[SimConfig], Suite]]] = {
    "tabletop": ("tabletop", _tabletop),
    "toy": ("toy", _toy),
    **dict.fromkeys(LIBERO_SUITES, ("libero", _libero)),
}
_LIGHT = ("tabletop", "toy")

"""Whether the server's policy and a suite of bodies fit each other."""

from __future__ import annotations

from agent.wire.errors import ConfigError
from agent.wire.messages import Welcome
from sim_bridge.robot import Suite


def require_fit(suite: Suite, welcome: Welcome) -> None:
    """Raises ConfigError unless the suite can give and take what the server's policy does."""
    pairs = (
        ("action_dim", suite.action_dim, welcome.action_dim),
        ("proprio_dim", suite.proprio_dim, welcome.proprio_dim),
    )
    for name, have, want in pairs:
        if have != want:
            raise ConfigError(
                f"{name}: policy '{welcome.policy}' has {want}, suite '{suite.name}' has {have}; "
                "serve a policy made for this suite or choose another suite"
            )
    missing = sorted(set(welcome.images) - set(suite.cameras))
    if missing:
        raise ConfigError(
            f"images: policy '{welcome.policy}' wants {missing}, suite '{suite.name}' has "
            f"{list(suite.cameras)}; serve a policy made for this suite or choose another suite"
        )

"""How many files and connections this process may hold open."""

from __future__ import annotations

import os
import resource

from agent.process.errors import ConfigError

LEAST_DESCRIPTORS = 40  # a server that serves nobody has 34


def raise_descriptor_limit() -> int:
    """Allow this process what its administrator allows at most; returns that.

    The usual soft limit, 1024, is for programs that use select(); nothing here does.

    Raises:
        ConfigError: nothing can work with so few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < LEAST_DESCRIPTORS:
        raise ConfigError(
            f"this process may hold {hard} files open, and needs {LEAST_DESCRIPTORS} at least; "
            "raise the hard limit (ulimit -Hn, or LimitNOFILE= of a systemd unit)"
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_descriptors() -> int:
    """How many more this process may open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    return soft - used

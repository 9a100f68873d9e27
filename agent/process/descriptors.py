"""How many files and connections this process may hold open."""

from __future__ import annotations

import os
import resource


def raise_descriptor_limit() -> int:
    """Allow this process what its administrator allows at most; returns that.

    The usual soft limit, 1024, is for programs that use select(); nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_descriptors() -> int:
    """How many more this process may open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    return soft - used

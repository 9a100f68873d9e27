"""How long a test waits for what comes at once."""

HANG_S = 1800.0
"""So long that only a hang meets it: other work on the machine, or its disk, makes a test slow."""

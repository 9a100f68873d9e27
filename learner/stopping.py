"""How a learner ends early."""


class Stopped(Exception):
    """The process was asked to stop; what was not committed is done again after a resume."""

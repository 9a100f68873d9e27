"""How a learner ends early."""

EXIT_STATUS = 3  # not 0, which says that the run is finished, nor 1 and 2, which say that it failed


class Stopped(Exception):
    """The process was asked to stop; what was not committed is done again after a resume."""

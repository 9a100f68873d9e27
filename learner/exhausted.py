"""What the libraries say when there is no memory left, as one error with the way out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from agent.wire.errors import PerennialError

# oneDNN says the second whatever keeps it from making what a layer needs; that is memory.
_SAID = ("allocate memory", "could not create a primitive", "out of memory")


class NoMemoryLeft(PerennialError):
    """The machine, or its GPU, has not what this needs."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises NoMemoryLeft for what Python and torch raise inside when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_ours and not any(said in str(error) for said in _SAID):
            raise
        raise NoMemoryLeft(
            "no memory left: give learner.micro_batch a lower value, set "
            "model.recompute_activations=true, or stop what else needs memory"
        ) from error

"""Named GPUs by their datasheets, and the time below which no implementation can be."""

from collections.abc import Iterable
from dataclasses import dataclass

from agent.model.cost import Forward
from agent.wire.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 peak with float32 accumulation [FLOP/s], bandwidth [B/s], memory [B]."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float

    def reaching(self, compute: float, bandwidth: float) -> "Gpu":
        """The same GPU at these shares of its peaks."""
        name = f"{self.name} at {compute:.0%}/{bandwidth:.0%}"
        speeds = self.flops_per_s * compute, self.bytes_per_s * bandwidth
        return Gpu(name, *speeds, self.memory_bytes)


# The vendor's datasheets, without sparsity. Jetson modules are left out: their datasheets state
# sparse INT8 or FP4 rates only.
GPUS = (
    Gpu("H200 SXM", 989.4e12, 4.8e12, 141e9),
    Gpu("H100 SXM", 989.4e12, 3.35e12, 80e9),
    Gpu("A100 SXM 80GB", 312e12, 2.039e12, 80e9),
    Gpu("L40S", 362e12, 0.864e12, 48e9),
    Gpu("RTX 4090", 165.2e12, 1.008e12, 24e9),
)


def gpu_by_name(name: str) -> Gpu:
    """The one whose name has these letters, whatever their case. Raises ConfigError."""
    found = [gpu for gpu in GPUS if name.casefold() in gpu.name.casefold()]
    if len(found) != 1:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise ConfigError(f"gpu: {name!r} names {len(found)} of those known: {known}")
    return found[0]


def compute_floor_s(forwards: Iterable[Forward], gpu: Gpu) -> float:
    """Time of the FLOPs alone."""
    return sum(forward.flops for forward in forwards) / gpu.flops_per_s


def bandwidth_floor_s(forwards: Iterable[Forward], gpu: Gpu) -> float:
    """Time of reading the weights (and cache) alone."""
    return sum(forward.bytes_read for forward in forwards) / gpu.bytes_per_s


def floor_s(forwards: Iterable[Forward], gpu: Gpu) -> float:
    """The larger of the two, forward by forward: each waits for the one before it."""
    return sum(
        max(compute_floor_s([forward], gpu), bandwidth_floor_s([forward], gpu))
        for forward in forwards
    )

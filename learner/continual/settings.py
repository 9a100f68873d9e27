"""The settings of the continual-learning methods, each in a section of its own."""

from dataclasses import dataclass

from agent.config import require, require_choice, require_range

METHODS = ("sequential", "multitask", "ewc", "retain", "slca", "dwe")
SECTION_OF = {
    "ewc": "ewc",
    "retain": "retain",
    "slca": "slca",
}  # method -> its section, of those that have one
SECTIONS = tuple(dict.fromkeys(SECTION_OF.values()))


@dataclass
class EwcConfig:
    """Elastic weight consolidation."""

    weight: float = 1.0e6  # lambda; the public code's default
    samples: int = 256  # chunks from which the Fisher information is estimated

    def __post_init__(self) -> None:
        require_range("continual.ewc.weight", self.weight, 0, 1e15)
        require_range("continual.ewc.samples", self.samples, 1, 1_000_000)


@dataclass
class RetainConfig:
    """Merging of every task's weight update."""

    coefficient: float = 0.5  # of each update; the public code's default

    def __post_init__(self) -> None:
        require_range("continual.retain.coefficient", self.coefficient, 0, 1)


@dataclass
class SlcaConfig:
    """Slow learner: the trunk learns more slowly than the head."""

    trunk_factor: float = 0.1  # of the learning rate; the paper's 4e-6 to the head's 4e-5

    def __post_init__(self) -> None:
        require_range("continual.slca.trunk_factor", self.trunk_factor, 0, 1)


@dataclass
class ContinualConfig:
    """What is done against forgetting; one section is used, that of `method`."""

    method: str = "sequential"
    ewc: EwcConfig | None = None
    retain: RetainConfig | None = None
    slca: SlcaConfig | None = None

    def __post_init__(self) -> None:
        require_choice("continual.method", self.method, METHODS)
        for name in SECTIONS:
            owners = " or ".join(m for m, section in SECTION_OF.items() if section == name)
            require(
                (getattr(self, name) is not None) == (name == SECTION_OF.get(self.method)),
                f"continual.{name} belongs to continual.method={owners}, and only to it; take both "
                f"from continual={self.method}",
            )

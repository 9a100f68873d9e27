"""The settings of the continual-learning methods, each in a section of its own."""

from dataclasses import dataclass, field

from agent.process.checks import require, require_choice, require_range

TEACHERS = ("previous", "base")
CRITICS = ("v", "q")
# method -> its section of the settings, "" for one that has none.
SECTION_OF = {
    "sequential": "",
    "multitask": "",
    "ewc": "ewc",
    "er": "er",
    "der": "der",
    "retain": "retain",
    "slca": "slca",
    "crl-vla": "crl_vla",
    "dwe": "",
}
METHODS = tuple(SECTION_OF)
SECTIONS = tuple(section for section in SECTION_OF.values() if section)


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
class ReplayConfig:
    """What the replay methods share: a memory of chunks of earlier tasks."""

    weight: float = 0.03  # of the loss on the memory; the public code's default
    batch_size: int = 32  # chunks drawn for each optimiser step; the public code's default
    chunks_per_task: int = 256  # most that are kept of a task

    def check(self, section: str) -> None:
        """Raises ConfigError for the first value out of range."""
        require_range(f"continual.{section}.weight", self.weight, 0, 1_000_000)
        require_range(f"continual.{section}.batch_size", self.batch_size, 1, 1_000_000)
        require_range(f"continual.{section}.chunks_per_task", self.chunks_per_task, 1, 1_000_000)


@dataclass
class ErConfig(ReplayConfig):
    """Experience replay."""

    # Folders of shards; none: the policy's own successful episodes of a task's last iteration.
    demonstrations: list[str] = field(default_factory=list)
    demonstrations_per_task: int = 1

    def __post_init__(self) -> None:
        self.check("er")
        require_range("continual.er.demonstrations_per_task", self.demonstrations_per_task, 1, 1000)


@dataclass
class DerConfig(ReplayConfig):
    """Dark experience replay."""

    teacher: str = "previous"  # the policy after each task; or base: the model without adapter

    def __post_init__(self) -> None:
        self.check("der")
        require_choice("continual.der.teacher", self.teacher, TEACHERS)


@dataclass
class CrlVlaConfig:
    """CRL-VLA. The weights are the paper's: 1e-5 is its ablation's best, .01 of its main table."""

    critic: str = "v"  # or q: it reads the chosen actions, too
    draws: int = 4  # q: actions drawn at an observation, whose mean value is the baseline
    kl_weight: float = 1.0e-5  # alpha
    value_weight: float = 0.01  # beta_V
    batch_size: int = 32  # chunks drawn from the memory for each optimiser step
    chunks_per_task: int = 256  # most that are kept of a task

    def __post_init__(self) -> None:
        require_choice("continual.crl_vla.critic", self.critic, CRITICS)
        for name in ("kl_weight", "value_weight"):
            require_range(f"continual.crl_vla.{name}", getattr(self, name), 0, 1_000_000)
        for name in ("draws", "batch_size", "chunks_per_task"):
            require_range(f"continual.crl_vla.{name}", getattr(self, name), 1, 1_000_000)


@dataclass
class ContinualConfig:
    """What is done against forgetting; one section is used, that of `method`."""

    method: str = "sequential"
    ewc: EwcConfig | None = None
    retain: RetainConfig | None = None
    slca: SlcaConfig | None = None
    er: ErConfig | None = None
    der: DerConfig | None = None
    crl_vla: CrlVlaConfig | None = None

    def __post_init__(self) -> None:
        require_choice("continual.method", self.method, METHODS)
        for name in SECTIONS:
            owners = " or ".join(m for m, section in SECTION_OF.items() if section == name)
            require(
                (getattr(self, name) is not None) == (name == SECTION_OF.get(self.method)),
                f"continual.{name} belongs to continual.method={owners}, and only to it; take both "
                f"from continual={self.method}",
            )

"""The learner's configuration: a dataclass schema, checked before anything heavy is imported."""

from dataclasses import asdict, dataclass, field
from typing import Any

from agent.config import DTYPES, read_instruction
from agent.process.checks import require, require_choice, require_range
from learner.algorithm_config import AlgorithmConfig
from learner.combinations import refuse_combinations
from learner.continual.settings import ContinualConfig

SEED_MAX = 2**63 - 1


@dataclass
class TaskConfig:
    """One task of the suite. `horizon_steps` counts control steps."""

    slug: str = ""
    instruction: str = ""
    horizon_steps: int = 0


@dataclass
class SuiteConfig:
    """Columns of the success matrix, what is trained in which order, and the init states."""

    name: str = "tabletop"
    tasks: list[TaskConfig] = field(default_factory=list)
    train_tasks: list[str] = field(default_factory=list)
    held_out_tasks: list[str] = field(default_factory=list)
    train_init_states: int = 50
    eval_init_states: int = 50
    protocol: str = "disjoint"  # how init states are used; every rate is under one
    stop_at_success: bool = True  # success once; false: success at the horizon's end


@dataclass
class EvalConfig:
    """Trials per cell are eval_init_states * slots; greedy repeats nothing, so one slot.

    At temperature 0 the rollouts are greedy, and measured once.
    """

    slots_per_state: int = 2
    held_out_slots_per_state: int = 1
    middle_slots_per_state: int | None = None  # of rows between first and last; None: as those
    greedy: bool = True  # base and final rows of trained tasks; all tasks if none is trained
    full_matrix: bool = False  # every task after every task, not only what a figure needs

    def __post_init__(self) -> None:
        for name in ("slots_per_state", "held_out_slots_per_state", "middle_slots_per_state"):
            if (slots := getattr(self, name)) is not None:
                require_range(f"evaluation.{name}", slots, 1, 10_000)


@dataclass
class SftConfig:
    """Supervised fine-tuning on demonstration shards."""

    demonstrations: list[str] = field(default_factory=list)  # folders
    steps_per_iteration: int = 20
    batch_size: int = 64

    def __post_init__(self) -> None:
        require_range("sft.steps_per_iteration", self.steps_per_iteration, 1, 1_000_000)
        require_range("sft.batch_size", self.batch_size, 1, 1_000_000)


@dataclass
class RoundingConfig:
    """A bfloat16 base: what |recomputed - recorded| log-probabilities may be [nats]."""

    trusted_p99: float = 0.1  # 99% quantile up to which the recorded ones are used as they are
    refused_p99: float = 1.0  # beyond it something else is wrong; between the two: corrected
    weight_cap: float = 2.0  # of the importance weights that correct

    def __post_init__(self) -> None:
        require_range("rounding.trusted_p99", self.trusted_p99, 0, 1000)
        require_range("rounding.refused_p99", self.refused_p99, 0, 1000)
        require_range("rounding.weight_cap", self.weight_cap, 1, 1_000_000)
        require(
            self.trusted_p99 <= self.refused_p99,
            f"rounding: trusted_p99 {self.trusted_p99} must not exceed refused_p99 "
            f"{self.refused_p99}",
        )


@dataclass
class LearnerConfig:
    """Everything `python -m learner` needs. Paths are used as they are."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    start_adapter: str = ""  # folder of an adapter that row 0 measures; "": the base
    start_adapter_scale: float = 1.0  # multiplies its update; 0: the base
    temperature: float = (
        1.0  # of rollouts and of the rollout evaluation; 0, greedy: evaluates alone
    )
    seed: int = 0
    model_dir: str = ""  # an OpenVLA-OFT folder; "": the nano model that comes along
    unnorm_key: str = ""  # "": the only one of the model folder
    architecture: dict[str, Any] = field(default_factory=dict)  # what its config.json leaves out
    cameras: list[str] = field(default_factory=lambda: ["agentview", "wrist"])
    dtype: str = "float32"  # of the base; the adapter is float32
    device: str = "cpu"
    micro_batch: int = 32
    recompute_activations: bool = False  # less memory, half as much arithmetic again
    logprob_tolerance: float = 1e-4  # of a float32 base
    rounding: RoundingConfig = field(default_factory=RoundingConfig)
    threads: int = 1  # of numerical libraries
    keep_used_episodes: bool = True  # False: an episode's file goes once an update has used it
    state_dir: str = "run/learner"
    adapters_dir: str = "run/adapters"
    operator_endpoint: str = "ipc:///tmp/perennial/operator.sock"
    keys_dir: str = ""  # this client's keys, made by `perennial keys add`; "": in clear
    request_timeout_s: float = 10.0
    http_host: str = "127.0.0.1"
    http_port: int = 0  # 0: any free one
    http_open: bool = False  # may serve metrics and health beyond this machine, in clear
    last_row: int | None = None  # evaluate no row beyond it: the beginning of runs to be forked
    exit_when_done: bool = True  # False: when all is learned, go on receiving and telling
    die_with_parent: bool = False

    def __post_init__(self) -> None:
        _check_suite(self.suite)
        require(
            self.suite.train_init_states or not self.algorithm.iterations_per_task,
            f"protocol {self.suite.protocol} has no states to train on; choose another, or "
            "algorithm.iterations_per_task=0 to evaluate alone",
        )
        require_choice("dtype", self.dtype, DTYPES)
        require_range("temperature", self.temperature, 0, 1000)
        require(
            self.temperature > 0 or not self.algorithm.iterations_per_task,
            "temperature must be > 0: greedy rollouts teach nothing; "
            "algorithm.iterations_per_task=0 evaluates alone",
        )
        require_range("start_adapter_scale", self.start_adapter_scale, 0, 1000)
        require_range("micro_batch", self.micro_batch, 1, 1_000_000)
        require_range("threads", self.threads, 1, 1024)
        require_range("http_port", self.http_port, 0, 65_535)
        require_range("seed", self.seed, 0, SEED_MAX)
        require_range("logprob_tolerance", self.logprob_tolerance, 0, 1000)
        require_range("request_timeout_s", self.request_timeout_s, 0.05, 600)
        if self.last_row is not None:
            require_range("last_row", self.last_row, 0, 1_000_000)
        require(self.cameras, "cameras is empty; name the policy's, e.g. [agentview, wrist]")
        require(
            self.algorithm.method != "sft" or self.sft.demonstrations,
            "algorithm.method=sft needs sft.demonstrations: folders of demonstration shards",
        )
        refuse_combinations(self)

    def task(self, slug: str) -> TaskConfig:
        """The suite's task of that name."""
        return next(task for task in self.suite.tasks if task.slug == slug)

    def resume_settings(self) -> dict[str, Any]:
        """The values that must be the same when a run is resumed."""
        keys = ("suite", "algorithm", "continual", "evaluation", "sft", "start_adapter",
                "start_adapter_scale", "temperature", "seed", "unnorm_key", "architecture",
                "cameras", "dtype", "micro_batch", "rounding")  # fmt: skip
        return {key: value for key, value in asdict(self).items() if key in keys}


def _check_suite(suite: SuiteConfig) -> None:
    slugs = [task.slug for task in suite.tasks]
    require(slugs, "suite.tasks is empty; choose a suite, e.g. suite=tabletop")
    require(len(set(slugs)) == len(slugs), f"suite.tasks repeats a slug: {slugs}")
    require(suite.train_tasks, "suite.train_tasks is empty; name at least one task to train")
    for name in ("train_tasks", "held_out_tasks"):
        chosen = getattr(suite, name)
        unknown = [slug for slug in chosen if slug not in slugs]
        require(not unknown, f"suite.{name} {unknown} are not tasks of {suite.name}: {slugs}")
        require(len(set(chosen)) == len(chosen), f"suite.{name} repeats a task: {chosen}")
    both = sorted({*suite.train_tasks} & {*suite.held_out_tasks})
    require(not both, f"tasks {both} are both trained and held out")
    for task in suite.tasks:
        require_range(f"horizon_steps of suite task {task.slug}", task.horizon_steps, 1, 1_000_000)
        task.instruction = read_instruction(
            f"instruction of suite task {task.slug}", task.instruction
        )
    require_range("suite.train_init_states", suite.train_init_states, 0, 1_000_000)
    require_range("suite.eval_init_states", suite.eval_init_states, 1, 1_000_000)

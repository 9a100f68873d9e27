"""How the policy learns: the schema of the learner's `algorithm` section, checked on its own."""

from dataclasses import dataclass, field

from agent.process.checks import require, require_above, require_choice, require_range

METHODS = ("grpo", "ppo", "dpo", "sft")
GROUPINGS = ("init_state", "task")
ADVANTAGE_CONTROLS = ("none", "permute_within_group")
RATIO_LEVELS = ("token", "action", "chunk")


@dataclass
class PpoConfig:
    """What PPO has beyond GRPO: a critic. The defaults are RL4VLA's and RLinf's."""

    gamma: float = 0.99  # discount per chunk
    gae_lambda: float = 0.95
    bootstrap_at_limit: bool = False  # or: what comes after the step limit has value, too
    value_lr: float = 3e-3
    value_coef: float = 1.0  # of the value loss; its gradient goes into the adapter as well
    value_clip: float = 0.2
    huber_delta: float = 10.0
    hidden_sizes: list[int] = field(default_factory=lambda: [512, 128])  # of the critic
    ratio: str = "token"  # or action, chunk: what has one probability ratio, clipped as one

    def __post_init__(self) -> None:
        require_choice("algorithm.ppo.ratio", self.ratio, RATIO_LEVELS)
        for name in ("gamma", "gae_lambda"):
            require_range(f"algorithm.ppo.{name}", getattr(self, name), 0, 1)
        for name, low in (("value_lr", 0), ("value_coef", 0)):
            require_range(f"algorithm.ppo.{name}", getattr(self, name), low, 1_000_000)
        for name in ("value_clip", "huber_delta"):
            require_above(f"algorithm.ppo.{name}", getattr(self, name), 0, 1_000_000)
        for size in self.hidden_sizes:
            require_range("algorithm.ppo.hidden_sizes", size, 1, 1_000_000)


@dataclass
class DpoConfig:
    """What DPO has beyond GRPO."""

    beta: float = 0.1  # of the preference's log-odds, per nat of the whole trajectories' margin

    def __post_init__(self) -> None:
        require_above("algorithm.dpo.beta", self.beta, 0, 1_000_000)


@dataclass
class AsyncConfig:
    """Acting goes on while the learner learns: what it learns from may be a little old."""

    staleness: int = 1  # most updates between the version that acted and the one improved; 0: none
    weight_cap: float = 2.0  # largest importance weight, proximal over acting policy
    dual_clip: float = 3.0  # where the advantage is negative, the loss is at most this times it

    def __post_init__(self) -> None:
        require_range("algorithm.asynchronous.staleness", self.staleness, 0, 16)
        for name in ("weight_cap", "dual_clip"):
            require_above(f"algorithm.asynchronous.{name}", getattr(self, name), 1, 1_000_000)


@dataclass
class AlgorithmConfig:
    """How the policy learns. The nano values; the 7B recipe's are in its own file."""

    method: str = "grpo"  # or ppo, dpo; or sft: supervised, on the task's demonstrations
    group_size: int = 8
    groups_per_iteration: int = 8
    iterations_per_task: int = 10  # 0: measure the base and train nothing
    max_episodes_per_task: int = 0  # no new iteration beyond this many; 0: no such limit
    resample_degenerate: int = 0  # most extra groups an iteration, in place of degenerate ones
    grouping: str = "init_state"  # or task: leave-one-out over the whole iteration, for robots
    optimizer_steps_per_iteration: int = 4  # of each epoch
    epochs: int = 1  # passes over the iteration's episodes
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip_norm: float = 1.0
    lora_rank: int = 8
    lora_alpha: float = 8.0
    full_rank: bool = False  # or train every adapted weight whole; lora_rank then follows from it
    fresh_optimizer_per_task: bool = True
    learn_action_scale: bool = False  # oft-l1: train the spread of actions, too
    advantage_control: str = "none"  # or permute_within_group: outcomes shuffled, a control
    ppo: PpoConfig | None = None  # for method ppo only
    dpo: DpoConfig | None = None  # for method dpo only
    asynchronous: AsyncConfig | None = None  # None: acting waits for learning

    def __post_init__(self) -> None:
        require_choice("algorithm.method", self.method, METHODS)
        require_choice("algorithm.grouping", self.grouping, GROUPINGS)
        require_choice("algorithm.advantage_control", self.advantage_control, ADVANTAGE_CONTROLS)
        for name, low in (
            ("group_size", 2),
            ("groups_per_iteration", 1),
            ("iterations_per_task", 0),
            ("optimizer_steps_per_iteration", 1),
            ("epochs", 1),
            ("lora_rank", 1),
            ("max_episodes_per_task", 0),
            ("resample_degenerate", 0),
            ("learning_rate", 0),
            ("weight_decay", 0),
        ):
            require_range(f"algorithm.{name}", getattr(self, name), low, 1_000_000)
        for name in ("clip_low", "clip_high", "clip_norm", "lora_alpha"):
            require_above(f"algorithm.{name}", getattr(self, name), 0, 1_000_000)
        require(
            not (self.method == "sft" and self.learn_action_scale),
            "algorithm.learn_action_scale: an L1 loss does not train the spread; use grpo or ppo, "
            "or set learn_action_scale=false",
        )
        require(
            not self.full_rank or self.lora_alpha == self.lora_rank,
            f"algorithm.full_rank needs lora_alpha = lora_rank, so that an update counts once; got "
            f"{self.lora_alpha:g} and {self.lora_rank}",
        )
        self._check_ppo()
        self._check_dpo()
        self._check_asynchronous()

    @property
    def staleness(self) -> int:
        """Most updates between the version that acted and the one improved; 0: acting waits."""
        return 0 if self.asynchronous is None else self.asynchronous.staleness

    def _check_ppo(self) -> None:
        require(
            (self.method == "ppo") == (self.ppo is not None),
            "algorithm.ppo belongs to algorithm.method=ppo, and only to it; take both from "
            "algorithm@learner.algorithm=ppo-nano",
        )
        if self.method == "ppo":
            require(
                self.resample_degenerate == 0 and self.advantage_control == "none",
                "algorithm.method=ppo compares no groups: set resample_degenerate=0 and "
                "advantage_control=none",
            )

    def _check_dpo(self) -> None:
        require(
            (self.method == "dpo") == (self.dpo is not None),
            "algorithm.dpo belongs to algorithm.method=dpo, and only to it; take both from "
            "algorithm@learner.algorithm=dpo-nano",
        )
        require(
            self.method != "dpo" or self.grouping == "init_state",
            "algorithm.method=dpo compares episodes of one start: set grouping=init_state",
        )

    def _check_asynchronous(self) -> None:
        if self.staleness == 0:
            return
        require(
            self.method == "grpo",
            "algorithm.asynchronous: only grpo corrects for the staleness of its episodes, not "
            f"{self.method}; choose algorithm.method=grpo, or asynchronous=null",
        )
        require(
            self.resample_degenerate == 0,
            "algorithm.asynchronous orders iterations before the outcomes of those before are "
            "known, so no group can be drawn in place of a degenerate one: set "
            "resample_degenerate=0, and more groups_per_iteration instead",
        )

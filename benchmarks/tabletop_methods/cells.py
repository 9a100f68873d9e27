"""What is run: every cell of the report, in parts, and the hyperparameters that were chosen.

Hyperparameters are chosen on two tasks outside the suite (part `tuning`), three values of one
hyperparameter a method, and a fourth beyond an end of the range if the best of three lay there; the
report's own tasks are never looked at for it.
"""

from __future__ import annotations

from deploy.bench.cells import Cell
from deploy.bench.results import read_result
from deploy.local.processes import PACKAGE_ROOT

NAME = "tabletop-methods"
REPORTS = PACKAGE_ROOT / "benchmarks" / "reports"
RESULTS = REPORTS / NAME  # one small file a finished cell
RUNS = PACKAGE_ROOT / "runs" / NAME

SEEDS = (0, 1, 2)
SHARED = ("suite=tabletop", "budget=bench")

RATE = "learner.algorithm.learning_rate"
# Of each method the setting that is tuned, and the values tried, ascending. Methods that are not
# named have the learning rate of the optimiser that they stand on, and nothing else to choose.
TRIED: dict[str, tuple[str, tuple[str, ...]]] = {
    "sequential": (RATE, ("1e-4", "3e-4", "1e-3", "3e-3")),
    "ppo": (RATE, ("1e-4", "3e-4", "1e-3", "3e-3")),
    "sft": (RATE, ("1e-4", "3e-4", "1e-3", "3e-3")),
    "multitask": (RATE, ("1e-4", "3e-4", "1e-3")),
    "ewc": ("learner.continual.ewc.weight", ("1", "1e2", "1e4", "1e6")),
    "er": ("learner.continual.er.weight", ("0.003", "0.03", "0.3", "3")),
    "der": ("learner.continual.der.weight", ("0.0003", "0.003", "0.03", "0.3")),
    "retain": ("learner.continual.retain.coefficient", ("0.5", "0.8", "1.0")),
    "slca": ("learner.continual.slca.trunk_factor", ("0.1", "0.3", "0.5")),
    "full": (RATE, ("1e-5", "3e-5", "1e-4")),
    "dpo": ("learner.algorithm.dpo.beta", ("0.01", "0.03", "0.1", "0.3")),
    "crl-vla": ("learner.continual.crl_vla.kl_weight", ("1e-5", "1e-2", "1")),
}
# At 1 RETAIN keeps every update whole and SLCA is sequential fine-tuning: nothing beyond was tried.
UP_TO_ONE = {"retain", "slca"}
# What did best there; `python -m benchmarks.tabletop_methods choice` says whether it still does.
CHOSEN: dict[str, str] = {
    "sequential": "3e-4",
    "ppo": "1e-3",
    "sft": "1e-3",
    "multitask": "3e-4",
    "ewc": "1",
    "er": "0.003",
    "der": "0.003",
    "retain": "1.0",
    "slca": "0.5",
    "full": "3e-5",
    "dpo": "0.03",
    "crl-vla": "1e-2",
}
# A method that is a variant of another takes over what was chosen for that.
VARIANTS = {"der-base": "der", "crl-vla-q": "crl-vla"}
# Of a method whose learning rate is not tuned: whose it has. Of all others: GRPO's.
RATE_OF = {"crl-vla": "ppo", "crl-vla-q": "ppo"}

TUNING = (
    "suite=tabletop",
    "budget=demo",
    "suite.train_tasks=[pick_blue_tray,stack_red_blue]",
    "suite.held_out_tasks=[]",
    "learner.algorithm.iterations_per_task=4",
    "learner.evaluation.slots_per_state=4",
    "learner.evaluation.greedy=false",
    "probe_rate_hz=0",
    "seed=0",
)
CORE = ("sequential", "ppo", "ewc", "er", "der", "retain", "multitask", "sft")
SINGLE = ("slca", "dwe", "der-base", "crl-vla", "crl-vla-q", "dpo", "reversed", "full")
POLICIES = ("scratch", "cnn")  # the same method from another policy
# Values that were tried and not chosen, for what they learn and what they forget.
OTHERS = {
    "sequential": ("1e-4", "1e-3", "3e-3"),
    "ppo": ("3e-4", "3e-3"),
    "sft": ("1e-4", "3e-4", "3e-3"),
    "ewc": ("1e2", "1e6"),
    "er": ("0.03", "0.3"),
    "der": ("0.03", "0.3"),
    "retain": ("0.5", "0.8"),
}
SCALES = ("0.25", "0.5", "0.75")
AXES = (
    "camera", "lighting", "texture", "noise", "object", "receptacle", "instruction", "start_pose",
    "position", "reposition", "distractor",
)  # fmt: skip
MOVABLE = "suite.held_out_tasks=[pick_green_plate]"  # no axis moves a drawer
# Theirs whose last adapters are measured; stated, so that a report needs no folder of an adapter.
RANK = "agent.policy.adapter_rank=8"
MEASURED_ON_AXES = ("base", "sft", "sequential", "ppo")
# Asynchronous beside synchronous. Success: the whole suite, as fast as simulators go. Wall time:
# one task in a robot's time, as many updates as the paper's, with as many bodies as were expected
# to gain most, and with fewer and more.
ONE_TASK = (
    "sim.pace_hz=20", "task_order=[1]", "suite.held_out_tasks=[]",
    "learner.algorithm.iterations_per_task=10", "learner.evaluation.full_matrix=false",
    "learner.evaluation.slots_per_state=1",
)  # fmt: skip
PACES: dict[str, tuple[str, ...]] = {
    **{f"20hz-{bodies}-bodies": (*ONE_TASK, f"suite.envs={bodies}") for bodies in (20, 16, 24)},
    "unpaced": (),
}
JUDGED_PACE, SUITE_PACE = "20hz-20-bodies", "unpaced"
PACE_SEEDS = {pace: SEEDS if pace in (JUDGED_PACE, SUITE_PACE) else (0, 1) for pace in PACES}
MODES = ("sequential", "async")
PARTS = ("tuning", "core", "single", "policies", "others", "scales", "axes", "pace")


def declare(part: str) -> list[Cell]:
    """The cells of one part, in the order in which they are run."""
    return {
        "tuning": tuning,
        "core": lambda: [_cell(m, seed) for seed in SEEDS for m in CORE],
        "single": lambda: [_cell(method, 0) for method in SINGLE],
        "policies": policies,
        "others": others,
        "scales": scales,
        "axes": axes,
        "pace": pace,
    }[part]()


def tuning() -> list[Cell]:
    """Each value of each method on the tasks outside the suite."""
    return [
        Cell(tuning_name(method, value), method, 0,
             (*TUNING, f"method={method}", *_given_rate(method), f"{key}={value}"))
        for method, (key, values) in TRIED.items()
        for value in values
    ]  # fmt: skip


def tuning_name(method: str, value: str) -> str:
    """The cell of a method with one of the values that were tried."""
    return f"tuning-{method}-{value}"


def chosen(method: str) -> tuple[str, ...]:
    """The overrides that a method was chosen to have."""
    origin = VARIANTS.get(method, method)
    own = (f"{TRIED[origin][0]}={CHOSEN[origin]}",) if origin in CHOSEN else ()
    return (*_given_rate(method), *own)


def policies() -> list[Cell]:
    """GRPO from a policy that was never pretrained, and from a small CNN."""
    return [
        Cell(
            f"{policy}-seed0",
            policy,
            0,
            (*SHARED, "method=sequential", f"model=nano-{policy}", *chosen("sequential"), "seed=0"),
        )
        for policy in POLICIES
    ]


def others() -> list[Cell]:
    """Values that were not chosen: forgetting beside gain."""
    return [
        Cell(name_with(m, value), m, 0,
             (*SHARED, f"method={m}", *_given_rate(m), f"{TRIED[m][0]}={value}", "seed=0"))
        for m, values in OTHERS.items()
        for value in values
    ]  # fmt: skip


def name_with(method: str, value: str) -> str:
    """Seed 0's run of a method with a value that was tried: a core run, or one of the others."""
    return f"{method}-{'seed0' if value == CHOSEN[method] else value}"


def scales() -> list[Cell]:
    """The last adapter of sequential fine-tuning, scaled down."""
    return [
        Cell(f"scale-{s}", "scale", 0,
             (*_evaluation("sequential"), f"learner.start_adapter_scale={s}"))
        for s in SCALES
    ]  # fmt: skip


def axes() -> list[Cell]:
    """Last adapters of seed 0 under each perturbation."""
    return [
        Cell(f"axis-{axis}-{m}", m, 0, (*_evaluation(m), f"suite.perturb=[{axis}]", MOVABLE))
        for axis in AXES
        for m in MEASURED_ON_AXES
    ]


def pace() -> list[Cell]:
    """Synchronous and asynchronous at equal episodes."""
    shared = (
        *SHARED, "learner.algorithm.resample_degenerate=0", f"{RATE}={CHOSEN['sequential']}",
    )  # fmt: skip
    return [
        Cell(pace_name(pace, mode, seed), mode, seed,
             (*shared, f"method={mode}", *given, f"seed={seed}"))
        for pace, given in PACES.items()
        for seed in PACE_SEEDS[pace]
        for mode in MODES
    ]  # fmt: skip


def pace_name(pace: str, mode: str, seed: int) -> str:
    """The cell of one of the two modes at a pace."""
    return f"pace-{pace}-{mode}-seed{seed}"


def last_adapter(method: str) -> str:
    """Where seed 0's last adapter is, from the repository; its core cell must be finished."""
    path = RESULTS / f"{method}-seed0.json"
    version = read_result(path).adapters[-1] if path.is_file() else "not-there-yet"
    return f"{RUNS.relative_to(PACKAGE_ROOT)}/{method}-seed0/adapters/{version}"


def _evaluation(method: str) -> tuple[str, ...]:
    shared = (
        "suite=tabletop", "budget=eval", "learner.evaluation.greedy=false",
        "learner.evaluation.slots_per_state=1", "probe_rate_hz=0", "seed=0",
        RANK,
    )  # fmt: skip
    if method == "base":
        return shared
    return (*shared, f"learner.start_adapter={last_adapter(method)}")


def _cell(method: str, seed: int) -> Cell:
    overrides = (*SHARED, f"method={method}", *chosen(method), f"seed={seed}")
    return Cell(f"{method}-seed{seed}", method, seed, overrides)


def _given_rate(method: str) -> tuple[str, ...]:
    """The learning rate of a method for which none is tuned."""
    if TRIED.get(method, ("",))[0] == RATE:
        return ()
    origin = RATE_OF.get(method, "sequential")
    return (f"{RATE}={CHOSEN[origin]}",)

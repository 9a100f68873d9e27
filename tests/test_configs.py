"""Every shipped configuration composes, fits its process's schema, and refuses typos."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from agent.config import AgentConfig
from agent.process import load_config
from agent.wire.errors import ConfigError
from deploy.local.composition import CONFIGS
from deploy.local.placement import BadSetting
from deploy.local.settings import RunConfig, compose_run
from learner.config import LearnerConfig
from learner.continual.settings import ContinualConfig
from sim_bridge import toy
from sim_bridge.config import ProbeConfig, SimConfig
from sim_bridge.tabletop import tasks as tabletop

pytestmark = pytest.mark.checks

SCHEMAS: dict[str, type] = {
    "agent": AgentConfig,
    "learner": LearnerConfig,
    "sim": SimConfig,
    "probe": ProbeConfig,
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a model; composing reads no more of it than its name."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def default_run(model_dir: Path) -> RunConfig:
    """What one gets who sets nothing."""
    return compose_run([f"model.model_dir={model_dir}"])


def load_suite(name: str) -> dict[str, Any]:
    suite = OmegaConf.to_container(OmegaConf.load(CONFIGS / "suite" / f"{name}.yaml"))
    assert isinstance(suite, dict)
    return {str(key): value for key, value in suite.items()}


# Models, suites and budgets set sections of their own: no need for every combination of them. A
# budget chooses a suite's states, so each meets the two kinds of suites.
@pytest.mark.parametrize(
    "choices",
    [
        *([f"suite={suite}"] for suite in options("suite")),
        *(
            [f"suite={suite}", f"budget={budget}"]
            for suite in ("tabletop", "libero_spatial")
            for budget in options("budget")
        ),
        *([f"model={model}"] for model in options("model")),
        *([f"method={method}"] for method in options("method")),
        *([f"preset={preset}"] for preset in options("preset")),
    ],
    ids=" ".join,
)
def test_every_choice_fits_the_schemas(choices: list[str], model_dir: Path) -> None:
    run = compose_run([*choices, f"model.model_dir={model_dir}"])
    for name, values in run.processes.items():
        schema = SCHEMAS[name.partition("-")[0]]
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(values))
        assert isinstance(OmegaConf.to_object(merged), schema)


@pytest.mark.parametrize(
    ("preset", "suite", "trained", "held_out"),
    [
        ("vlacrl-spatial", "libero_spatial", range(5), range(5, 10)),
        ("vlacrl-object", "libero_object", range(5, 10), range(5)),
        ("vlacrl-long", "libero_10", range(3, 8), (0, 1, 2, 8, 9)),
        ("rl4vla-ppo", "libero_spatial", range(5), range(5, 10)),
        ("crl-vla", "libero_spatial", range(3), ()),
    ],
)
def test_a_preset_trains_the_papers_tasks(
    preset: str, suite: str, trained: Sequence[int], held_out: Sequence[int], model_dir: Path
) -> None:
    run = compose_run([f"preset={preset}", f"model.model_dir={model_dir}"])
    learner = run.processes["learner"]
    slugs = [task["slug"] for task in load_suite(suite)["tasks"]]
    assert learner["suite"]["name"] == suite
    assert learner["suite"]["train_tasks"] == [slugs[index] for index in trained]
    assert learner["suite"]["held_out_tasks"] == [slugs[index] for index in held_out]
    is_vlacrl = preset.startswith("vlacrl")
    assert run.processes["sim-0"]["protocol"] == ("vlacrl" if is_vlacrl else "disjoint")
    assert learner["temperature"] == (1.6 if is_vlacrl else 1.0)
    assert {task["horizon_steps"] for task in learner["suite"]["tasks"]} == (
        {512} if is_vlacrl else {220}
    )


@pytest.mark.parametrize(
    ("preset", "iterations", "learning_rate", "clip_high"),
    [
        ("vlacrl-spatial", 10, 2e-5, 0.28),
        ("vlacrl-object", 10, 2e-5, 0.28),
        ("vlacrl-long", 5, 2e-5, 0.28),
        ("rl4vla-ppo", 28, 1e-4, 0.2),
        ("crl-vla", 140, 1e-4, 0.2),
    ],
)
def test_a_preset_learns_as_the_paper_does(
    preset: str, iterations: int, learning_rate: float, clip_high: float, model_dir: Path
) -> None:
    run = compose_run([f"preset={preset}", f"model.model_dir={model_dir}"])
    algorithm = run.processes["learner"]["algorithm"]
    assert algorithm["iterations_per_task"] == iterations
    assert algorithm["learning_rate"] == learning_rate
    assert algorithm["clip_high"] == clip_high
    assert algorithm["lora_rank"] == 32


def test_what_is_given_by_hand_wins_over_a_preset(model_dir: Path) -> None:
    run = compose_run(
        ["preset=vlacrl-long", "budget=eval", "model=openvla-oft-discrete-7b", "continual=ewc",
         f"model.model_dir={model_dir}", "run_dir=elsewhere"]
    )  # fmt: skip
    learner = run.processes["learner"]
    assert learner["algorithm"]["iterations_per_task"] == 0
    assert learner["architecture"]["keep_stop_token"] is True
    assert learner["continual"]["method"] == "ewc"
    assert run.settings.run_dir.name == "elsewhere"


@pytest.mark.parametrize("algorithm", options("algorithm"))
def test_every_algorithm_can_be_chosen_for_a_run(algorithm: str, model_dir: Path) -> None:
    run = compose_run(
        [f"algorithm={algorithm}", f"model.model_dir={model_dir}", "learner.sft.demonstrations=[d]"]
    )
    merged = OmegaConf.merge(
        OmegaConf.structured(LearnerConfig), OmegaConf.create(run.processes["learner"])
    )
    learner = OmegaConf.to_object(merged)
    assert isinstance(learner, LearnerConfig)
    name = algorithm.partition("-")[0]
    assert learner.algorithm.method == ("grpo" if name == "full" else name)
    assert learner.algorithm.full_rank == (name == "full")


@pytest.mark.parametrize("method", options("continual"))
def test_every_continual_method_can_be_chosen_for_a_run(method: str, model_dir: Path) -> None:
    algorithm = "ppo-nano" if method.startswith("crl-vla") else "grpo-nano"
    run = compose_run(
        [f"continual={method}", f"algorithm={algorithm}", f"model.model_dir={model_dir}"]
    )
    values = run.processes["learner"]
    merged = OmegaConf.merge(OmegaConf.structured(LearnerConfig), OmegaConf.create(values))
    learner = OmegaConf.to_object(merged)
    assert isinstance(learner, LearnerConfig)
    assert method.startswith(learner.continual.method)  # der-base is a der
    assert set(values["continual"]) == set(ContinualConfig.__dataclass_fields__)


def test_the_server_has_room_for_the_adapter_of_every_merged_task(model_dir: Path) -> None:
    given = [f"model.model_dir={model_dir}", "learner.algorithm.lora_rank=6"]
    tasks = len(load_suite("tabletop")["train_tasks"])
    for chosen, rank in (
        ([], 6),
        (["continual=retain"], 6 * tasks),
        (["continual=retain", "task_order=[1,0]"], 12),
        (["continual=retain", "agent.policy.adapter_rank=64"], 64),
    ):
        assert compose_run(given + chosen).processes["agent"]["policy"]["adapter_rank"] == rank


def test_the_server_has_room_for_a_given_adapter(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 40}')
    given = [f"model.model_dir={model_dir}", "budget=eval", f"learner.start_adapter={tmp_path}"]
    assert compose_run(given).processes["agent"]["policy"]["adapter_rank"] == 40
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(BadSetting, match="start_adapter: no rank in"):
        compose_run(given)


@pytest.mark.parametrize(
    ("overrides", "algorithm", "continual"),
    [
        (["method=ewc"], "grpo", "ewc"),
        (["method=ppo", "continual=ewc"], "ppo", "ewc"),
        (["continual=sequential", "method=ewc"], "grpo", "sequential"),
        (["method=ppo", "algorithm=grpo-nano"], "grpo", "sequential"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_method_chooses_what_is_not_chosen_by_hand(
    overrides: list[str], algorithm: str, continual: str, model_dir: Path
) -> None:
    learner = compose_run([f"model.model_dir={model_dir}", *overrides]).processes["learner"]
    assert learner["algorithm"]["method"] == algorithm
    assert learner["continual"]["method"] == continual


def test_no_budget_sets_the_learning_rate_of_whole_weights(model_dir: Path) -> None:
    chosen = ["budget=bench", "method=full", f"model.model_dir={model_dir}"]
    algorithm = compose_run(chosen).processes["learner"]["algorithm"]
    assert (algorithm["full_rank"], algorithm["learning_rate"]) == (True, 3e-5)


def test_a_method_may_turn_the_order_of_the_tasks_round(model_dir: Path) -> None:
    run = compose_run([f"model.model_dir={model_dir}", "method=reversed"])
    assert tuple(run.processes["learner"]["suite"]["train_tasks"]) == tabletop.TRAIN_TASKS[::-1]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_process_file_lists_every_setting(name: str, default_run: RunConfig) -> None:
    assert set(default_run.tree[name]) == set(SCHEMAS[name].__dataclass_fields__)


def test_the_tabletop_file_says_what_the_suite_is() -> None:
    suite = load_suite("tabletop")
    assert suite["tasks"] == [
        {"slug": t.slug, "instruction": t.instruction, "horizon_steps": t.horizon_steps}
        for t in tabletop.TASKS
    ]
    assert tuple(suite["train_tasks"]) == tabletop.TRAIN_TASKS
    assert tuple(suite["held_out_tasks"]) == tabletop.HELD_OUT_TASKS


def test_the_toy_file_says_what_the_suite_is() -> None:
    suite = load_suite("toy")
    assert suite["image_size"] == toy.IMAGE_SIZE
    assert {task["slug"]: task["instruction"] for task in suite["tasks"]} == toy.INSTRUCTIONS
    assert {task["horizon_steps"] for task in suite["tasks"]} == {toy.HORIZON_STEPS}
    for split in ("train", "eval"):
        assert suite[f"{split}_init_states"] == toy.INIT_STATES[split]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sede=3", "did you mean 'seed'"),
        ("suite=tabeltop", "did you mean 'tabletop'"),
        ("budget=dem", "did you mean 'demo'"),
        ("algorithm=ppo", "did you mean 'ppo-7b'"),
        ("learner.algorithm.learning_rat=1", "did you mean 'learner.algorithm.learning_rate'"),
        ("task_order=[0,9]", "there is no task 9"),
        ("task_order=[1,1]", "a task is trained once"),
        ("task_order=2", "expected indices like [0,1]"),
        ("workers=0", "workers: expected 1 to 10000"),
        ("model.model_dir=/nowhere", "no config.json in /nowhere"),
        ("seed", "settings look like key=value"),
    ],
)
def test_a_bad_override_gives_one_line_with_the_way_out(
    override: str, expected: str, model_dir: Path
) -> None:
    with pytest.raises(BadSetting) as refusal:
        compose_run([f"model.model_dir={model_dir}", override])
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_task_order_chooses_and_orders_the_trained_tasks(model_dir: Path) -> None:
    run = compose_run([f"model.model_dir={model_dir}", "task_order=[2,0]"])
    trained = [tabletop.TRAIN_TASKS[2], tabletop.TRAIN_TASKS[0]]
    assert run.processes["learner"]["suite"]["train_tasks"] == trained
    assert run.processes["probe"]["task"] == trained[0]


def test_every_fact_that_a_folder_may_leave_out_can_be_stated() -> None:
    from agent.model.config import OpenVLAConfig

    names = [field.name for field in dataclasses.fields(OpenVLAConfig)]
    extension = names[names.index("variant") :]
    stated = OmegaConf.load(CONFIGS / "architecture" / "unstated.yaml")
    assert list(stated) == [n for n in extension if n not in ("vision_towers", "empty_token")]
    assert set(stated.values()) == {None}


def test_a_table_takes_any_key_on_the_command_line_and_nothing_else_does() -> None:
    words = ["policy.architecture={variant: oft-l1}", "tasks={reach: {instruction: reach}}"]
    config = load_config(AgentConfig, None, words)
    assert config.policy.architecture == {"variant": "oft-l1"}
    assert config.tasks["reach"].instruction == "reach"
    for typo in ("policy.architectur={}", "policy.nope=1"):
        with pytest.raises(ConfigError, match="unknown setting"):
            load_config(AgentConfig, None, [typo])

"""What a run will do, against counts made by hand."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from deploy.local.dryrun import compose_dry
from learner.algorithm_config import AlgorithmConfig, AsyncConfig, PpoConfig
from learner.config import EvalConfig, LearnerConfig, SftConfig, SuiteConfig, TaskConfig
from learner.continual.settings import ContinualConfig, DerConfig
from learner.workload import Played, count_workload

TASKS = [TaskConfig("a", "do a", 20), TaskConfig("b", "do b", 30), TaskConfig("c", "do c", 40)]
SUITE = SuiteConfig("toy", TASKS, ["a", "b"], ["c"], 5, 4)
ALGORITHM = AlgorithmConfig(group_size=4, groups_per_iteration=3, iterations_per_task=2,
                            optimizer_steps_per_iteration=5, epochs=2)  # fmt: skip
EVALUATION = EvalConfig(slots_per_state=2, held_out_slots_per_state=1, greedy=False)
CONFIG = LearnerConfig(suite=SUITE, algorithm=ALGORITHM, evaluation=EVALUATION)


def test_a_sequence_is_counted_episode_by_episode():
    work = count_workload(CONFIG, chunk_steps=8)
    # Two iterations of 12 episodes a task; 20 steps are 3 chunks, 30 are 4.
    assert work.training == Played(2 * 2 * 12, 24 * 20 + 24 * 30, 24 * 3 + 24 * 4)
    assert work.largest_iteration == Played(12, 360, 48)
    assert (work.updates, work.optimizer_steps) == (4, 4 * 5 * 2)
    assert (work.samples_trained, work.samples_scored) == (2 * 168, 0)
    # Rows 0 and 2: a and b with 8 episodes each, c with 4. Row 1: a alone.
    assert work.evaluation == Played(
        2 * 20 + 8, 2 * (8 * 20 + 8 * 30 + 4 * 40) + 8 * 20, 2 * (8 * 3 + 8 * 4 + 4 * 5) + 8 * 3
    )


def test_a_mean_length_shortens_only_longer_horizons():
    work = count_workload(CONFIG, chunk_steps=8, mean_steps=25)
    assert work.training.steps == 24 * 20 + 24 * 25
    assert work.training.episodes == 48


def test_tasks_learned_together_cost_as_many_episodes_and_fewer_evaluations():
    together = replace(CONFIG, continual=ContinualConfig(method="multitask"))
    work, apart = count_workload(together, 8), count_workload(CONFIG, 8)
    assert work.training == apart.training
    assert work.updates == apart.updates
    assert work.evaluation.episodes == apart.evaluation.episodes - 8


def test_what_stops_a_run_early_is_counted():
    limited = replace(CONFIG, algorithm=replace(ALGORITHM, max_episodes_per_task=12))
    assert count_workload(limited, 8).training.episodes == 2 * 12
    forked = replace(CONFIG, last_row=1)
    assert count_workload(forked, 8).training == Played(24, 480, 72)
    assert count_workload(forked, 8).evaluation.episodes == 20 + 8
    measured = replace(CONFIG, algorithm=replace(ALGORITHM, iterations_per_task=0))
    assert count_workload(measured, 8).training == Played()
    assert count_workload(measured, 8).evaluation.episodes == 20


def test_each_method_has_its_forwards():
    ppo = replace(ALGORITHM, method="ppo", ppo=PpoConfig())
    assert count_workload(replace(CONFIG, algorithm=ppo), 8).samples_scored == 168
    der = ContinualConfig("der", der=DerConfig(batch_size=6))
    # Two updates of the second task, ten optimiser steps each.
    assert count_workload(replace(CONFIG, continual=der), 8).samples_trained == 2 * 168 + 120
    for staleness, scored in ((0, 0), (1, 168 * 4 // 5)):
        ahead = replace(ALGORITHM, asynchronous=AsyncConfig(staleness))
        work = count_workload(replace(CONFIG, algorithm=ahead), 8)
        assert (work.samples_trained, work.samples_scored) == (2 * 168, scored)
    more = replace(ALGORITHM, resample_degenerate=3)
    assert count_workload(replace(CONFIG, algorithm=more), 8).resampled == 4 * 3 * 4
    sft = replace(CONFIG, algorithm=replace(ALGORITHM, method="sft"),
                  sft=SftConfig(["demos"], steps_per_iteration=7, batch_size=10))  # fmt: skip
    work = count_workload(sft, 8)
    assert (work.training, work.optimizer_steps, work.samples_trained) == (Played(), 28, 280)


@pytest.mark.parametrize(
    ("preset", "chunk_steps", "training", "evaluation"),
    [
        # 5 tasks of 10 or 5 iterations of 1,024; 6 rows of 10 tasks, 6 from each of 50 states.
        ("vlacrl-spatial", 8, Played(51_200, 51_200 * 512, 51_200 * 64), 6 * 10 * 300),
        ("vlacrl-object", 8, Played(51_200, 51_200 * 512, 51_200 * 64), 6 * 10 * 300),
        ("vlacrl-long", 8, Played(25_600, 25_600 * 512, 25_600 * 64), 6 * 10 * 300),
        # 140 iterations of 64; base and final row of 10 tasks, 100 sampled, 5 of them greedy too.
        ("rl4vla-ppo", 1, Played(8_960, 8_960 * 220, 8_960 * 220), 2 * (10 * 100 + 5 * 20)),
        # 3 tasks of 140 iterations of 64; 4 rows of 3 tasks.
        ("crl-vla", 8, Played(26_880, 26_880 * 220, 26_880 * 28), 4 * 3 * 100),
    ],
)
def test_a_preset_has_the_papers_episodes(preset, chunk_steps, training, evaluation):
    settings, _ = compose_dry([f"preset={preset}"])
    node = OmegaConf.merge(
        OmegaConf.structured(LearnerConfig), OmegaConf.create(settings.processes["learner"])
    )
    work = count_workload(OmegaConf.to_object(node), chunk_steps)
    assert work.training == training
    assert work.evaluation.episodes == evaluation

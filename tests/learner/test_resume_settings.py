"""Which settings may differ when a run is resumed, possibly by a newer release."""

import copy
import json
import shutil
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_run import Run, make_config

from agent.process.changes import find_differences, schema_defaults
from learner.algorithm_config import AlgorithmConfig, PpoConfig
from learner.checkpoint import FILES, CheckpointError, content_hash
from learner.config import RoundingConfig


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("finished")
    run = Run(folder, make_config())
    run.go()
    run.store.close()
    return folder


def begun_by_another_release(finished, folder, edit):
    """A copy of the run whose recorded settings are as `edit` leaves them."""
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    checkpoint = max((folder / "state/checkpoints").iterdir())  # of the last update
    state = json.loads((checkpoint / "state.json").read_text())
    edit(state["settings"])
    (checkpoint / "state.json").write_text(json.dumps(state))
    sha256 = content_hash({name: (checkpoint / name).read_bytes() for name in FILES})
    with sqlite3.connect(folder / "state/learner.db") as database:
        database.execute(
            "UPDATE updates SET checkpoint_sha256 = ? WHERE checkpoint = ?",
            (sha256, checkpoint.name),
        )
    database.close()


def forget_defaults(settings):
    del settings["algorithm"]["max_episodes_per_task"], settings["rounding"], settings["seed"]
    settings["algorithm"]["warmup_steps"] = 7  # went with a release


def test_a_run_of_an_older_release_is_resumed_and_what_went_is_told(finished, tmp_path, caplog):
    begun_by_another_release(finished, tmp_path, forget_defaults)
    resumed = Run(tmp_path, make_config())
    resumed.go()
    assert resumed.loop.publication.version == resumed.adapters.versions()[-1]
    (warning,) = [r.getMessage() for r in caplog.records if "no more" in r.getMessage()]
    assert "algorithm.warmup_steps=7" in warning


@pytest.mark.parametrize(
    ("edit", "now", "words"),
    [
        (
            lambda settings: None,
            {"learning_rate": 0.5},
            ["algorithm.learning_rate=0.005, not 0.5"],
        ),
        (
            lambda settings: settings["algorithm"].pop("weight_decay"),
            {"weight_decay": 0.1},
            ["begun without algorithm.weight_decay", "as algorithm.weight_decay=0.0, not 0.1"],
        ),
        (
            lambda settings: settings["suite"]["tasks"][1].update(horizon_steps=9),
            {},
            ["suite.tasks.1.horizon_steps=9, not 50"],
        ),
        (
            lambda settings: settings["suite"]["tasks"][1].pop("horizon_steps"),
            {},
            ["begun without suite.tasks.1.horizon_steps", "=0, not 50"],
        ),
        (
            lambda settings: None,
            {"learning_rate": 0.5, "clip_norm": 2.0},
            ["begun with algorithm.clip_norm=1.0, not", "(also: algorithm.learning_rate)"],
        ),
    ],
    ids=["changed", "new", "changed in a list", "new in a list", "two"],
)
def test_a_setting_that_would_change_the_numbers_is_refused_by_name(
    finished, tmp_path, edit, now, words
):
    begun_by_another_release(finished, tmp_path, edit)
    with pytest.raises(CheckpointError) as refusal:
        Run(tmp_path, make_config(**now)).go()
    for expected in [*words, "another state_dir to start afresh"]:
        assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def differences(recorded, config):
    defaults = schema_defaults(config, recorded)
    found = find_differences(recorded, config.resume_settings(), defaults)
    return {(difference.kind, difference.key) for difference in found}


def test_a_new_setting_of_a_section_that_is_off_by_default_has_the_sections_own_default():
    config = make_config(method="ppo", ppo=PpoConfig(), resample_degenerate=0)
    recorded = config.resume_settings()
    del recorded["algorithm"]["ppo"]["huber_delta"]
    assert differences(recorded, config) == set()
    config.algorithm.ppo.huber_delta = 1.0
    assert differences(recorded, config) == {("new", "algorithm.ppo.huber_delta")}


def test_a_section_that_came_with_a_release_must_be_off_if_it_is_off_by_default():
    config = make_config(method="ppo", ppo=PpoConfig(), resample_degenerate=0)
    recorded = config.resume_settings()
    del recorded["algorithm"]["ppo"]
    assert differences(recorded, config) == {("new", "algorithm.ppo")}


def test_a_section_that_was_off_may_not_be_switched_on():
    config = make_config(method="ppo", ppo=PpoConfig(), resample_degenerate=0)
    recorded = config.resume_settings()
    recorded["algorithm"]["ppo"] = None
    assert differences(recorded, config) == {("changed", "algorithm.ppo")}


def test_a_fact_that_nobody_states_may_come_with_a_release():
    config = make_config()
    config.architecture = {"variant": None, "added": None}
    recorded = config.resume_settings() | {"architecture": {"variant": None}}
    assert differences(recorded, config) == set()
    config.architecture["added"] = "new"
    assert differences(recorded, config) == {("new", "architecture.added")}


FIELDS = {
    "algorithm": sorted(AlgorithmConfig.__dataclass_fields__),
    "rounding": sorted(RoundingConfig.__dataclass_fields__),
    "": sorted(make_config().resume_settings()),
}
PATHS = [f"{section}.{name}".lstrip(".") for section, names in FIELDS.items() for name in names]


def take(settings, path):
    """Removes what `path` names, if it is still there."""
    *section, name = path.split(".")
    for step in section:
        settings = settings.get(step, {})
    settings.pop(name, None)


@given(st.sets(st.sampled_from(PATHS)))
def test_exactly_what_an_older_release_lacked_and_is_no_default_is_refused(paths):
    config = make_config()
    recorded = config.resume_settings()
    for path in paths:
        take(recorded, path)
    filled = _filled(recorded, schema_defaults(config, {}))
    refused = {key.split(".")[0] for _, key in differences(recorded, config)}
    wanted = config.resume_settings()
    assert refused == {name for name in wanted if wanted[name] != filled[name]}


def _filled(recorded, defaults):
    """`recorded` with everything that it lacks at its default, the rule said another way."""
    whole = copy.deepcopy(defaults) | recorded
    for name, value in recorded.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            whole[name] = _filled(value, defaults[name])
    return whole

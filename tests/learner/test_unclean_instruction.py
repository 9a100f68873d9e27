"""What was served and recorded before instructions had one spelling is scored as it was told."""

import dataclasses
import logging

import micro_fixtures
import numpy as np
import pytest
from learner_run import Run, make_config
from micro_fixtures import CAMERAS, INSTRUCTIONS, micro_policy, play
from test_resume_settings import begun_by_another_release, finished  # noqa: F401  # a fixture
from test_update import updater_for
from tokenizers import Regex, Tokenizer, pre_tokenizers

from agent.episode import read_episode
from agent.episode_writer import EpisodeWriter
from agent.model.nano import TOKEN_PATTERN, build_nano_tokenizer
from agent.model.processing import PROMPT_TEMPLATE
from learner.advantages import normalise_group
from learner.batch import Trajectory, build_samples
from learner.checkpoint import CheckpointError

CLEAN = INSTRUCTIONS[0]
UNCLEAN = (f"  {CLEAN}", f"{CLEAN}. ", f"{CLEAN}\n")


def write_exact_tokenizer(folder):
    """The micro model's, which reads white space as the published one does."""
    tokenizer = build_nano_tokenizer(
        [*INSTRUCTIONS, "move left."], n_action_bins=micro_fixtures.BINS
    )
    pattern = Regex(rf"{TOKEN_PATTERN}|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    text = tokenizer.to_str().replace('"<unused0>"', '" "').replace('"<unused1>"', '"\\n"')
    (folder / "tokenizer.json").write_text(text)
    return Tokenizer.from_str(text)


class EarlierPrompts:
    """How an earlier server made a prompt: of the letters it was given."""

    def __init__(self, prompts):
        self._prompts = prompts

    def encode_as_told(self, text):
        ids = self._prompts.tokenizer.encode(PROMPT_TEMPLATE.format(task=text.lower())).ids
        return [*ids, self._prompts.empty_token_id]

    encode = encode_as_told


@pytest.fixture
def policy(tmp_path, monkeypatch):
    monkeypatch.setattr(micro_fixtures, "write_micro_tokenizer", write_exact_tokenizer)
    return micro_policy(tmp_path)


def played_earlier(policy, folder, index, instruction):
    """An episode that an earlier server has served and recorded, read from its file."""
    episode = play(policy, index, instruction=instruction, chunks=2)
    path = folder / f"{episode.meta.episode_id}.mcap"
    writer = EpisodeWriter(path, episode.meta)
    for record in episode.chunks:
        writer.append(record)
    writer.seal(episode.end)
    return read_episode(path)


@pytest.mark.parametrize("instruction", [CLEAN, *UNCLEAN])
def test_a_stored_episode_is_scored_with_the_prompt_that_was_served(
    policy, tmp_path, monkeypatch, instruction
):
    with monkeypatch.context() as then:
        prompts = EarlierPrompts(policy.model.prompts)
        then.setattr(policy, "model", dataclasses.replace(policy.model, prompts=prompts))
        episodes = [played_earlier(policy, tmp_path, i, instruction) for i in range(4)]
    assert {episode.meta.instruction for episode in episodes} == {instruction}
    advantages = normalise_group(np.array([1.0, 0.0, 0.0, 1.0]))
    group = [Trajectory(i, *pair) for i, pair in enumerate(zip(episodes, advantages, strict=True))]
    samples = build_samples(group, CAMERAS)
    scored = policy.score(samples, np.arange(len(samples))).logprobs_BKA.detach().numpy()
    np.testing.assert_allclose(scored, samples.logprobs_BKA, rtol=1e-5, atol=1e-5)
    report = updater_for(policy).run(samples, 4, update_id=1)  # which checks it, too
    assert report.agreement.largest < 1e-4


@pytest.mark.parametrize("instruction", UNCLEAN)
def test_the_prompt_that_was_served_is_another_one(policy, instruction):
    """Otherwise the test above would show nothing."""
    prompts = policy.model.prompts
    assert prompts.encode(instruction) == prompts.encode(CLEAN)
    assert prompts.encode_as_told(CLEAN) == prompts.encode(CLEAN)
    assert prompts.encode_as_told(instruction) != prompts.encode(CLEAN)


@pytest.mark.parametrize("instruction", UNCLEAN)
def test_a_run_that_was_told_so_goes_on(finished, tmp_path, caplog, instruction):  # noqa: F811
    begun_by_another_release(
        finished, tmp_path, lambda settings: settings["suite"]["tasks"][0].update(
            instruction=instruction
        ),
    )  # fmt: skip
    config = make_config()
    config.suite.tasks[0].instruction = instruction
    config.__post_init__()  # as its own settings are read again
    with caplog.at_level(logging.WARNING):
        resumed = Run(tmp_path, config)
        resumed.go()
    assert resumed.loop.publication.version == resumed.adapters.versions()[-1]
    (line,) = [r.getMessage() for r in caplog.records if "instruction" in r.getMessage()]
    assert f"goes on with '{CLEAN}'" in line
    assert "\n" not in line


def test_another_instruction_is_refused_still(finished, tmp_path):  # noqa: F811
    begun_by_another_release(
        finished, tmp_path, lambda settings: settings["suite"]["tasks"][0].update(
            instruction=" move right."
        ),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"suite\.tasks\.0\.instruction"):
        Run(tmp_path, make_config()).go()

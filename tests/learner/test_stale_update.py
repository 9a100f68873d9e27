"""Updates on samples of earlier versions: checked against theirs, corrected for the difference."""

import dataclasses

import numpy as np
import pytest
import torch
from micro_fixtures import CAMERAS, renewed_policy
from test_update import SETTINGS, group_of

from agent.adapters import AdapterCorrupt, AdapterStore
from learner.algorithm_config import AsyncConfig
from learner.batch import build_samples, split_trajectories
from learner.policy import LOG_SCALE
from learner.served import ServedTrainedMismatch, correct
from learner.stale_update import EarlierVersions, StaleUpdater, behaviour_figures
from learner.update import Updater, build_optimizer

LOOSE = AsyncConfig(staleness=1, weight_cap=1e6, dual_clip=1e6)


class Past:
    """A policy that has moved on from a published version, whose samples there are."""

    def __init__(self, folder, move=0.03, variant="oft-discrete", learn_scale=False):
        self.policy = renewed_policy(folder, variant=variant, learn_scale=learn_scale)
        adapters = AdapterStore(folder / "adapters")
        self.earlier = EarlierVersions(self.policy, adapters)
        self.version = adapters.publish(
            1, self.policy.adapter_files(), parent="base", task="t", base_sha256="0" * 64,
            method="m", metrics={},
        ).version  # fmt: skip
        trajectories = group_of(self.policy, [1, 0, 0, 1], version=self.version)
        self.samples = build_samples(trajectories, CAMERAS)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.policy.parameters.values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(move * noise.to(parameter.device))

    def updater(self, asynchronous=LOOSE, **changes):
        return StaleUpdater(
            self.policy,
            build_optimizer(self.policy.parameters, 1e-2, 0.0),
            dataclasses.replace(SETTINGS, **changes),
            asynchronous,
            self.earlier,
            np.ones(len(self.samples), dtype=np.int64),
        )

    def now(self):
        """Log-probabilities of the samples under the policy as it is."""
        return self.updater().score(self.samples, np.arange(len(self.samples)))


@pytest.fixture
def past(tmp_path):
    return Past(tmp_path)


def test_the_first_step_weighs_each_token_by_its_truncated_ratio(past):
    ratio = np.exp(past.now().astype(np.float64) - past.samples.logprobs_BKA)
    trained = past.samples.mask_BK > 0
    cap = float(np.quantile(ratio[trained], 0.9))
    assert cap > 1
    updater = past.updater(AsyncConfig(1, weight_cap=cap), optimizer_steps=1)
    report = updater.run(past.samples, 4, update_id=1)
    # The proximal policy is the present one: its ratio is 1, the loss is -advantage times weight.
    each = -past.samples.advantages_B[:, None, None] * np.minimum(ratio, cap)
    each = each * past.samples.mask_BK[..., None] * past.samples.weights_B[:, None, None]
    assert report.means["loss"] == pytest.approx(each.sum() / 4, rel=1e-4)
    assert report.first_clip_fraction == 0
    assert report.means["staleness_mean"] == 1.0
    assert report.means["behaviour_ratio_mean"] == pytest.approx(ratio[trained].mean(), rel=1e-4)
    assert report.means["behaviour_capped"] == pytest.approx(0.1, abs=0.02)
    assert report.agreement.largest <= 1e-4


def test_steps_are_those_of_samples_that_were_all_corrected_before_the_first(tmp_path):
    weights = []
    for is_reference in (False, True):
        folder = tmp_path / str(is_reference)
        folder.mkdir()
        past = Past(folder)
        updater = past.updater(optimizer_steps=2)
        if is_reference:
            corrected = correct(past.samples, past.now(), LOOSE.weight_cap)
            for members in split_trajectories(4, 2, SETTINGS.seed, update_id=1):
                updater.accumulate_gradient(corrected, members)
                updater._step()
        else:
            updater.run(past.samples, 4, update_id=1)
        weights.append(past.policy.adapter_files())
    assert weights[0] == weights[1]


def test_what_the_first_gradient_comes_from_is_not_scored_before_it(past, monkeypatch):
    updater, scored, score = past.updater(optimizer_steps=2), [], past.policy.score

    def score_and_note(samples, rows):
        scored.extend(np.unique(rows))  # a short batch repeats a row
        return score(samples, rows)

    monkeypatch.setattr(past.policy, "score", score_and_note)
    updater.run(past.samples, 4, update_id=1)
    times = np.bincount(scored)
    times[updater.rows_to_check(past.samples, 1)] -= 1
    first = split_trajectories(4, 2, SETTINGS.seed, update_id=1)[0]
    is_first = np.isin(past.samples.trajectory_B, first)
    assert set(times[is_first]) == {1}
    assert set(times[~is_first]) == {2}


def test_without_a_difference_it_is_the_update_of_the_samples_own_version(tmp_path):
    """Ratio 1 everywhere: what is not stale in fact is not treated as if it were."""
    reports = []
    for is_stale in (True, False):
        folder = tmp_path / str(is_stale)
        folder.mkdir()
        past = Past(folder, move=0.0)
        optimizer = build_optimizer(past.policy.parameters, 1e-2, 0.0)
        updater = past.updater() if is_stale else Updater(past.policy, optimizer, SETTINGS)
        reports.append(updater.run(past.samples, 4, update_id=1))
    stale, plain = reports
    assert stale.means["behaviour_ratio_mean"] == pytest.approx(1.0, rel=1e-5)
    # A sum of advantages of both signs, each of about 1.
    assert stale.means["loss"] == pytest.approx(plain.means["loss"], abs=1e-5)
    assert stale.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)


def test_the_policy_is_what_it_was_after_a_look_at_an_earlier_version(past):
    before, bytes_before = past.policy.adapter_tensors(), past.policy.adapter_files()
    objects = dict(past.policy.parameters)

    def look_and_fail():
        with past.earlier.restored(past.version):
            served, within = past.now(), past.policy.adapter_tensors()
            assert np.abs(served - past.samples.logprobs_BKA).max() <= 1e-4
            assert not all(before[name].equal(tensor) for name, tensor in within.items())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    assert past.policy.adapter_files() == bytes_before
    assert all(past.policy.parameters[name] is tensor for name, tensor in objects.items())
    assert np.abs(past.now() - past.samples.logprobs_BKA).max() > 1e-3


def test_the_base_is_the_policy_as_it_was_given(past):
    with past.earlier.restored("base"):
        assert np.abs(past.now() - past.samples.logprobs_BKA).max() <= 1e-4


def test_a_learned_spread_of_actions_is_restored_too(tmp_path):
    past = Past(tmp_path, variant="oft-l1", learn_scale=True)
    spread = past.policy.parameters[LOG_SCALE].detach().clone()
    with past.earlier.restored(past.version):
        assert not past.policy.parameters[LOG_SCALE].equal(spread)
        assert np.abs(past.now() - past.samples.logprobs_BKA).max() <= 1e-4
    assert past.policy.parameters[LOG_SCALE].equal(spread)


def test_samples_that_their_version_did_not_make_are_refused_before_a_weight_changes(past):
    before = past.policy.adapter_files()
    # What the present policy would have recorded is wrong for the version that is named.
    wrong = dataclasses.replace(past.samples, logprobs_BKA=past.now())
    with pytest.raises(ServedTrainedMismatch, match=past.version):
        past.updater().run(wrong, 4, update_id=1)
    assert past.policy.adapter_files() == before


def test_an_altered_adapter_is_no_proof_of_what_was_served(past, tmp_path):
    weights = tmp_path / "adapters" / past.version / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterCorrupt):
        past.updater().run(past.samples, 4, update_id=1)


def test_each_sample_is_checked_against_its_own_version(past):
    """Half of them were played by the base, which here differs from the published version."""
    base = past.earlier._base
    with torch.no_grad():
        for tensor in base.values():
            tensor.mul_(0.5)
    with past.earlier.restored("base"):
        of_base = past.now()
    is_base = past.samples.trajectory_B % 2 == 0
    mixed = dataclasses.replace(
        past.samples,
        version_B=np.where(is_base, "base", past.version),
        logprobs_BKA=np.where(is_base[:, None, None], of_base, past.samples.logprobs_BKA),
    )
    assert past.updater().run(mixed, 4, update_id=1).agreement.largest <= 1e-4
    swapped = dataclasses.replace(mixed, version_B=np.where(is_base, past.version, "base"))
    with pytest.raises(ServedTrainedMismatch):
        past.updater().run(swapped, 4, update_id=2)


def test_figures_look_at_trained_tokens_alone(past):
    proximal = past.samples.logprobs_BKA + np.log(3.0)
    proximal[past.samples.mask_BK == 0] += 5.0
    figures = behaviour_figures(past.samples, proximal, weight_cap=2.0)
    assert figures["behaviour_ratio_mean"] == pytest.approx(3.0, rel=1e-5)
    assert figures["behaviour_capped"] == 1.0

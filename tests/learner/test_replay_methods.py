"""Experience replay and dark experience replay: memories, losses and their gradients."""

import numpy as np
import pytest
import torch
from closeness import GRADIENT, assert_near
from micro_fixtures import BINS, INSTRUCTIONS, A, K, micro_policy, play, renewed_policy
from replay_fixtures import (
    BATCH,
    STEP,
    UPDATE,
    WEIGHT,
    PlayedPast,
    check_against_finite_differences,
    gradient,
    learn_two,
    make_der,
    make_er,
    one_by_one,
    played,
    two_tasks,
)

from agent.wire.errors import ConfigError
from learner.continual.memory import MemoryRefused
from learner.continual.replay import squared_distance
from learner.continual.settings import DerConfig, ErConfig


@pytest.fixture(params=["oft-discrete", "oft-l1", "openvla"])
def policy(request, tmp_path):
    return renewed_policy(tmp_path, variant=request.param)


@pytest.fixture
def discrete(tmp_path):
    return renewed_policy(tmp_path)


def test_er_remembers_the_successes_of_tasks_that_are_over(discrete):
    er = make_er(discrete, two_tasks(discrete))
    assert er.before_task(0, "base") == "base"
    assert er.add_gradient(1, 0) == {"memory_chunks": 0.0, "memory_mb": 0.0}
    learn_two(er)
    assert er.memory.tasks == ["a", "b"]
    assert (er.memory.rows.task_B == ["a"] * 6 + ["b"] * 3).all()
    assert set(er.memory.rows.instruction_B) == set(INSTRUCTIONS)


def test_a_task_without_success_leaves_er_nothing(discrete):
    er = make_er(discrete, PlayedPast(played(discrete, "a", False)))
    er.before_task(1, "v1")
    assert er.memory.rows is None


def test_the_memory_of_a_task_is_bounded(discrete):
    der = learn_two(make_der(discrete, two_tasks(discrete), chunks_per_task=4))
    assert (der.memory.rows.task_B == ["a"] * 4 + ["b"] * 4).all()


def test_episodes_of_another_task_are_refused(discrete):
    past = PlayedPast([*played(discrete, "a", True), *played(discrete, "b", True)])
    for method in (make_er(discrete, past), make_der(discrete, past)):
        with pytest.raises(MemoryRefused, match="task, split, phase: b, train, train"):
            method.before_task(1, "v1")


def test_er_is_the_mean_negative_log_likelihood_of_executed_actions(policy):
    er = learn_two(make_er(policy, two_tasks(policy)))

    def nll(memory, row):
        logprobs = policy.score(memory, row).logprobs_BKA.detach()
        return -(logprobs * torch.from_numpy(memory.mask_BK[row])[:, :, None]).sum().item()

    total, actions = one_by_one(er, nll)
    figures = check_against_finite_differences(policy, er)
    assert figures["er_loss"] == pytest.approx(WEIGHT * total / (actions * A), rel=1e-4)
    assert figures["memory_chunks"] == len(er.memory.rows)


def test_er_scores_at_the_temperature_of_the_rollouts(discrete):
    er = learn_two(make_er(discrete, two_tasks(discrete)))
    memory, row = er.memory.rows, np.array([0])
    output = discrete.score(memory, row).output
    choices = torch.from_numpy(memory.choices_BKA[row])
    expected = torch.log_softmax(output.logits_BKAV / 1.6, -1).gather(-1, choices[..., None])
    assert_near(er.losses(memory, row), -expected[..., 0])


def test_der_is_the_mean_squared_change_of_the_answers(policy):
    der = learn_two(make_der(policy, two_tasks(policy)))
    unchanged = der.add_gradient(UPDATE, STEP)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.mul_(1.5)

    def square(memory, row):
        output = policy.score(memory, row).output
        now = output.means_BKA if output.logits_BKAV is None else output.logits_BKAV
        return np.square(now.detach().numpy() - memory.targets_BX[row]).mean()

    total, _ = one_by_one(der, square)
    figures = check_against_finite_differences(policy, der)
    assert figures["der_loss"] == pytest.approx(WEIGHT * total / BATCH, rel=1e-4)
    assert unchanged["der_loss"] < 1e-8 * figures["der_loss"]
    assert figures["memory_chunks"] == len(der.memory.rows)


def test_the_squared_distance_of_a_hand_computed_case():
    logits = torch.tensor([[[[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]]])
    stored = torch.tensor([[[[1.0, 0.0, 3.0], [3.0, 0.0, 0.0]]]])
    assert squared_distance(logits, stored).tolist() == [[[pytest.approx(5 / 3), 3.0]]]
    means, stored = torch.tensor([[[0.5, -1.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert squared_distance(means, stored).tolist() == [[[0.25, 4.0]]]
    rounded = torch.tensor([[[2.0, 1.0]]], dtype=torch.bfloat16)
    assert squared_distance(rounded, stored).dtype == torch.float32


def test_der_keeps_the_answers_of_the_previous_policy_or_of_the_base(tmp_path):
    policy = micro_policy(tmp_path)  # its adapter is not zero
    past = two_tasks(policy)
    previous, base = (
        learn_two(make_der(policy, past, teacher=name)).memory.rows for name in ("previous", "base")
    )
    assert (previous.images_BNHWC == base.images_BNHWC).all()
    rows = np.arange(4)  # one instruction
    with torch.no_grad():
        now = policy.score(previous, rows).output.logits_BKAV.numpy()
        tensors = policy.adapter_tensors()
        policy.load_adapter({n: torch.zeros_like(t) for n, t in tensors.items()})
        bare = policy.score(previous, rows).output.logits_BKAV.numpy()
        policy.load_adapter(tensors)
    assert previous.targets_BX.shape[1:] == (K, A, BINS)
    assert_near(previous.targets_BX[rows], now)
    assert_near(base.targets_BX[rows], bare)
    assert np.abs(now - bare).max() > 1e-2


def test_without_its_adapter_a_policy_is_the_base_and_gets_it_back(discrete):
    chunks = PlayedPast().samples([play(discrete, 0)])
    rows, before = np.arange(3), discrete.adapter_tensors()
    scores, names = discrete.score(chunks, rows).logprobs_BKA, list(discrete.parameters)
    with discrete.without_adapter():
        bare = discrete.score(chunks, rows).logprobs_BKA
        assert not bare.requires_grad
    assert not torch.equal(bare, scores)
    assert torch.equal(discrete.score(chunks, rows).logprobs_BKA, scores)
    assert list(discrete.parameters) == names
    assert all(torch.equal(before[n], t) for n, t in discrete.adapter_tensors().items())
    with pytest.raises(KeyError), discrete.without_adapter():
        raise KeyError
    assert list(discrete.parameters) == names


def test_a_bfloat16_base_has_its_answers_kept_in_float32(tmp_path):
    policy = micro_policy(tmp_path, dtype=torch.bfloat16)
    der = learn_two(make_der(policy, two_tasks(policy)))
    answers = der.memory.rows.targets_BX
    assert answers.dtype == np.float32
    # A square of bfloat16's rounding, which has 8 bits.
    assert der.add_gradient(UPDATE, STEP)["der_loss"] < 1e-4 * WEIGHT * np.square(answers).mean()


@pytest.mark.parametrize("make", [make_er, make_der])
def test_the_micro_batch_has_no_influence_on_the_gradient(make, discrete):
    method = learn_two(make(discrete, two_tasks(discrete)))
    if make is make_der:
        method.memory.rows.targets_BX[:] += 0.3  # else there is no gradient
    gradients = []
    for size in (2, 16):
        method._config.micro_batch = size
        found, _ = gradient(discrete, method)
        gradients.append(torch.cat([g.flatten() for g in found.values()]))
    assert_near(*gradients, GRADIENT)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("make", [make_er, make_der])
def test_a_gradient_is_added_to_what_is_there_and_weight_0_adds_nothing(make, discrete):
    past = two_tasks(discrete)
    for weight in (WEIGHT, 0.0):
        method = learn_two(make(discrete, past, weight=weight))
        if make is make_der:
            method.memory.rows.targets_BX[:] += 0.3
        alone, _ = gradient(discrete, method)
        for parameter in discrete.parameters.values():
            parameter.grad.fill_(1.0)
        method.add_gradient(UPDATE, STEP)
        for name, parameter in discrete.parameters.items():
            assert_near(parameter.grad, alone[name] + 1.0)
            assert weight or not alone[name].any()


@pytest.mark.parametrize("make", [make_er, make_der])
def test_what_was_saved_goes_on_as_if_never_stopped(make, discrete):
    method = learn_two(make(discrete, two_tasks(discrete)))
    again = make(discrete, PlayedPast())  # nothing to look back at
    again.load_state(method.state())
    again._config.suite.train_tasks[:] = ["a", "b", "h"]
    again.before_task(2, "v2")
    (gradients, figures), others = (gradient(discrete, one) for one in (method, again))
    assert figures == others[1]
    assert all(torch.equal(g, others[0][name]) for name, g in gradients.items())


@pytest.mark.parametrize(
    "make",
    [lambda: ErConfig(weight=-1), lambda: DerConfig(weight=-1), lambda: ErConfig(batch_size=0),
     lambda: DerConfig(chunks_per_task=0), lambda: ErConfig(demonstrations_per_task=0),
     lambda: DerConfig(teacher="expert")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(make):
    with pytest.raises(ConfigError, match=r"continual\.d?er\."):
        make()

import pytest
import torch
from closeness import assert_near

from learner.critic import ValueHead


def test_the_head_computes_what_its_layers_say_by_hand():
    head = ValueHead(4, [3, 2], seed=0)
    state = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    x = state
    for name in ("layers.0", "layers.2"):
        weight, bias = (head.state_dict()[f"{name}.{part}"] for part in ("weight", "bias"))
        x = x @ weight.T + bias
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    expected = (x @ head.state_dict()["layers.4.weight"].T)[:, 0]
    assert_near(head(state), expected)


def test_its_size_is_that_of_the_published_head():
    head = ValueHead(4096, [512, 128], seed=0)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "layers.0.weight": (512, 4096), "layers.0.bias": (512,),
        "layers.2.weight": (128, 512), "layers.2.bias": (128,), "layers.4.weight": (1, 128),
    }  # fmt: skip
    assert head.layers[4].weight.std().item() == pytest.approx(0.02, rel=0.25)


def test_its_weights_follow_from_the_seed_and_leave_torchs_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (ValueHead(8, [4], seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_a_bfloat16_state_is_judged_in_float32_and_gets_its_gradient():
    head = ValueHead(8, [4], seed=0)
    state = torch.randn(2, 8).bfloat16().requires_grad_()
    values = head(state)
    assert values.dtype == torch.float32
    assert values.shape == (2,)
    assert_near(values, head(state.detach().float()))
    values.sum().backward()
    assert state.grad.abs().sum() > 0

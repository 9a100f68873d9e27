"""The slow learner: which weights move by how much."""

import pytest
import torch
from micro_fixtures import micro_policy

from learner.continual.settings import SlcaConfig
from learner.continual.slca import Slca
from learner.update import build_optimizer


@pytest.mark.parametrize("variant", ["oft-discrete", "openvla", "cnn"])
def test_one_step_moves_the_trunk_by_the_factor_of_what_it_moves_the_head(variant, tmp_path):
    policy = micro_policy(tmp_path, variant=variant)
    before = {name: tensor.detach().clone() for name, tensor in policy.parameters.items()}
    factor_of = Slca(SlcaConfig(0.1)).learning_rate_factor
    optimizer = build_optimizer(policy.parameters, 1e-2, 0.0, factor_of)
    for parameter in policy.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # Adam's first step is the learning rate, whatever the gradient's size
    moved = {n: (before[n] - p.detach()).mean().item() for n, p in policy.parameters.items()}
    modules = dict(policy.network.named_modules())
    (head,) = (name for name, module in modules.items() if module is policy.network.output_layer)
    heads = {name for name in moved if f".{head}." in name}
    assert len(heads) == 2
    for name, distance in moved.items():
        assert distance == pytest.approx(1e-2 if name in heads else 1e-3, rel=1e-3)

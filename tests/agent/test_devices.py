"""Devices are checked before anything is loaded to them."""

import pytest

from agent.model.devices import check_device
from agent.wire.errors import ConfigError


def test_the_cpu_is_always_there():
    check_device("policy.device", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_cannot_compute_is_refused_by_the_setting_s_name(device):
    with pytest.raises(ConfigError, match=r"policy\.device"):
        check_device("policy.device", device)

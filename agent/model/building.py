"""The network that a config describes, by its variant."""

from agent.model.cnn import CnnPolicy
from agent.model.config import OpenVLAConfig
from agent.model.network import PolicyNetwork
from agent.model.openvla import OpenVLA


def build_network(config: OpenVLAConfig) -> PolicyNetwork:
    """The network with torch's own initial weights, on torch's default device."""
    return CnnPolicy(config) if config.is_convolutional else OpenVLA(config)

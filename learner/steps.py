"""How long one step of a learner may take: what a supervisor must wait before it calls that a hang.

A sign of life comes before each pass through the network, each reading of an episode and each
request. Between two of them lie at most one micro-batch, forward and backward, and one
checkpoint. Their cost is counted from the model; the machine is taken to be far slower than any
on which people learn, so that only what stands still meets the limit.
"""

from agent.model.cost import TRAINED_BYTES, train_flops
from learner.config import LearnerConfig
from learner.policy import LoraPolicy
from learner.receiver import FETCH_WAIT_S

PROMPT_TOKENS = 64  # few instructions are longer, and pictures have hundreds
CPU_FLOPS_PER_S = 2e9  # of one thread; a core of a small board computes four times as fast
GPU_FLOPS_PER_S = 1e12  # a small one of some years ago computes ten times as fast
DISK_BYTES_PER_S = 20e6  # of a memory card


def longest_step_s(config: LearnerConfig, policy: LoraPolicy) -> float:
    """Seconds within which either thread gets on, on any machine.

    One learns from a micro-batch and writes a checkpoint; the other greets an agent that may be
    gone, and asks it for episodes while there are none.
    """
    trained = sum(tensor.numel() for tensor in policy.parameters.values())
    rate = GPU_FLOPS_PER_S if policy.device.type == "cuda" else CPU_FLOPS_PER_S * config.threads
    learn_s = micro_batch_flops(config, policy) / rate
    write_s = trained * TRAINED_BYTES / DISK_BYTES_PER_S
    return learn_s + write_s + 2 * config.request_timeout_s + FETCH_WAIT_S


def micro_batch_flops(config: LearnerConfig, policy: LoraPolicy) -> float:
    """Of one forward and backward; 0 for the small convolutional policy, which nobody counts."""
    network = policy.model.config
    if network.is_convolutional:
        return 0.0
    sample_flops = train_flops(
        network,
        PROMPT_TOKENS,
        config.algorithm.lora_rank,
        checkpointing=config.recompute_activations,
    )
    return float(config.micro_batch * sample_flops)

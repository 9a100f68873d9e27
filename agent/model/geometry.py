"""The geometry of a network as plain lines for people."""

from agent.model.cnn import CHANNELS, WORD_DIM
from agent.model.config import OpenVLAConfig


def describe_geometry(config: OpenVLAConfig) -> tuple[str, ...]:
    """Vision, then what reads it, a line each."""
    llama = config.llama_config()
    vocabulary = f"vocabulary {llama.vocab_size:,}, {config.n_action_bins} action bins"
    if config.is_convolutional:
        return (
            f"convolutions: {', '.join(map(str, CHANNELS[1:]))} channels, each of stride 2",
            f"words: {WORD_DIM} wide, summed",
            f"decoder: {llama.hidden_size} wide, 2 layers, {vocabulary}",
        )
    towers = [
        f"{tower.kind}: {tower.dim} wide, {tower.depth} blocks ({tower.depth - 1} run), patches of "
        f"{tower.patch_size} px"
        for tower in config.towers
    ]
    return (
        *towers,
        f"llama: {llama.hidden_size} wide, {llama.num_hidden_layers} layers, {vocabulary}",
    )

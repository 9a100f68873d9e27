"""A micro OpenVLA-OFT (the published classes, 16 wide), and episodes it has really sampled."""

import dataclasses
import hashlib

import numpy as np
import torch

from agent.episode import ChunkRecord, EndRecord, Episode, EpisodeMeta
from agent.model.config import OpenVLAConfig
from agent.model.nano import build_nano_config, build_nano_tokenizer, init_nano
from agent.model.processing import PromptEncoder
from agent.model.sampling import gumbel_noise, sample_tokens, token_logprobs
from learner.policy import LoraPolicy

torch.set_num_threads(1)  # threads that fight over few cores cost more than they bring

K, A, BINS, CAMERAS = 3, 7, 16, ["agentview", "wrist"]
INSTRUCTIONS = ["move left", "move the red cube right"]
STATS = {
    "micro": {
        "action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]},
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
    }
}


def micro_config(tokenizer) -> OpenVLAConfig:
    nano = build_nano_config(
        tokenizer, STATS, image_size=16, patch_size=8, n_action_bins=BINS, chunk_size=K
    )
    tower = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    return dataclasses.replace(
        nano,
        vision_towers=tuple(dataclasses.replace(t, **tower) for t in nano.vision_towers),
        text_config={**nano.text_config, **text},
    )


def write_micro_tokenizer(folder):
    tokenizer = build_nano_tokenizer(INSTRUCTIONS, n_action_bins=BINS)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def micro_policy(folder, seed=0, rank=2) -> LoraPolicy:
    """A policy with a non-zero adapter."""
    config = micro_config(write_micro_tokenizer(folder))
    network = init_nano(config, seed).eval()
    # A fresh head is all but uniform: sharpen it, so that actions carry information.
    with torch.no_grad():
        network.language_model.lm_head.weight.mul_(10)
    policy = LoraPolicy(network, PromptEncoder(folder, config), "micro", rank, rank, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


def play(policy, index, chunks=3, success=False, version="v00001-aaaaaaaaaaaa", **changes):
    """An episode of random observations, its actions sampled from `policy` as a server would."""
    rng = np.random.default_rng(index)
    instruction = changes.pop("instruction", INSTRUCTIONS[0])
    episode_id = hashlib.sha256(str(index).encode()).hexdigest()[:32]
    meta = EpisodeMeta(
        episode_id=episode_id, order_id="train/0/1/0/0", slot_id=f"train/0/1/0/0#{index}",
        suite="toy", task="left", instruction=instruction, split="train", init_state=0,
        phase="train", version=version, horizon_steps=50, temperature=1.6, run_seed=0,
        noise_key="train/0/1/0/0", slot_index=index, policy="vla", base_sha256="0" * 64,
        client_id="c", started_unix_s=1.0,
    )  # fmt: skip
    records = [act(policy, meta, step, rng) for step in range(chunks)]
    executed = np.ones((chunks, K), dtype=np.uint8)
    executed[-1, 1 + index % K :] = 0
    end = EndRecord("success" if success else "timeout", int(executed.sum()), executed, "", 2.0)
    return Episode(meta, records, dataclasses.replace(end, **changes))


@torch.no_grad()
def act(policy, meta, step, rng) -> ChunkRecord:
    images = {name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in CAMERAS}
    proprio = rng.uniform(-1, 1, 8).astype(np.float32)
    stacked = np.stack([images[name] for name in CAMERAS])[None]
    logits = policy.logits(stacked, proprio[None], [meta.instruction])
    noise = torch.from_numpy(gumbel_noise(0, meta.slot_index, step, (K, A, BINS)))[None]
    tokens = sample_tokens(logits, meta.temperature, noise)
    logprobs = token_logprobs(logits, tokens, meta.temperature)
    return ChunkRecord(
        step, images, proprio, tokens[0].numpy().astype(np.int32),
        logprobs[0].numpy(), np.zeros((K, A), dtype=np.float32), meta.version,
    )  # fmt: skip

"""A micro OpenVLA-OFT (the published classes, 16 wide), and episodes it has really sampled."""

import dataclasses
import hashlib

import numpy as np
import torch

from agent.episode import ChunkRecord, EndRecord, Episode, EpisodeMeta
from agent.model.action_scale import initial_scale
from agent.model.autoregressive import generate
from agent.model.config import OpenVLAConfig
from agent.model.distributions import action_distribution
from agent.model.nano import as_cnn, build_nano_config, build_nano_tokenizer, init_nano
from agent.model.network import ActionOutput
from agent.model.policy_model import wrap_network
from agent.model.processing import pad_prompts
from agent.model.sampling import gumbel_noise, laplace_noise
from learner.policy import LOG_SCALE, LoraPolicy

torch.set_num_threads(1)  # threads that fight over few cores cost more than they bring

K, A, BINS, CAMERAS = 3, 7, 16, ["agentview", "wrist"]
INSTRUCTIONS = ["move left", "move the red cube right"]
STATS = {
    "micro": {
        "action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]},
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
    }
}


def micro_config(tokenizer, variant="oft-discrete") -> OpenVLAConfig:
    nano = build_nano_config(
        tokenizer, STATS, image_size=16, patch_size=8, n_action_bins=BINS, chunk_size=K
    )
    tower = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    if variant == "cnn":
        return as_cnn(nano, width=16)
    causal = {"num_images": 1, "use_proprio": False, "chunk_size": 1}
    return dataclasses.replace(
        nano,
        variant=variant,
        **(causal if variant == "openvla" else {}),
        vision_towers=tuple(dataclasses.replace(t, **tower) for t in nano.vision_towers),
        text_config={**nano.text_config, **text},
    )


def write_micro_tokenizer(folder):
    tokenizer = build_nano_tokenizer(INSTRUCTIONS, n_action_bins=BINS)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def micro_policy(
    folder,
    seed=0,
    rank=2,
    variant="oft-discrete",
    learn_scale=False,
    dtype=torch.float32,
    recompute=False,
    full_rank=False,
) -> LoraPolicy:
    """A policy with a non-zero adapter."""
    config = micro_config(write_micro_tokenizer(folder), variant)
    network = init_nano(config, seed).eval().to(dtype)
    # A fresh head is all but uniform: sharpen it, so that actions carry information.
    with torch.no_grad():
        network.output_layer.weight.mul_(10)
    model = wrap_network(network, folder, CAMERAS, "micro", base_sha256="0" * 64)
    policy = LoraPolicy(model, rank, rank, seed, learn_scale, recompute, full_rank)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if name == LOG_SCALE:
                continue  # episodes are played with the initial one
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


_BUILT = {}  # by what it was built of: a policy, its tensors and what they held


def renewed_policy(folder, **choices) -> LoraPolicy:
    """What `micro_policy` makes of the same arguments, built once and put back since.

    Whoever asks again takes it away from whoever asked before.
    """
    key = tuple(sorted(choices.items()))
    if key not in _BUILT:
        policy = micro_policy(folder, **choices)
        tensors = [*policy.network.state_dict(keep_vars=True).values()]
        tensors += [policy.parameters[LOG_SCALE]] if LOG_SCALE in policy.parameters else []
        _BUILT[key] = policy, tensors, [tensor.detach().clone() for tensor in tensors]
    policy, tensors, contents = _BUILT[key]
    with torch.no_grad():
        for tensor, content in zip(tensors, contents, strict=True):
            tensor.copy_(content)
            tensor.grad = None
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
    records = act(policy, meta, chunks, rng)
    chunk_steps = policy.network.config.chunk_size
    executed = np.ones((chunks, chunk_steps), dtype=np.uint8)
    executed[-1, 1 + index % chunk_steps :] = 0
    end = EndRecord("success" if success else "timeout", int(executed.sum()), executed, "", 2.0)
    return Episode(meta, records, dataclasses.replace(end, **changes))


@torch.no_grad()
def act(policy, meta, chunks, rng) -> list[ChunkRecord]:
    """Every chunk of an episode at once: what is seen does not follow from what was done."""
    cameras, images, proprios = policy.model.cameras, [], []
    for _ in range(chunks):
        images.append({n: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for n in cameras})
        proprios.append(rng.uniform(-1, 1, 8).astype(np.float32))
    stacked = np.stack([np.stack([seen[name] for name in cameras]) for seen in images])
    observation = (stacked, np.stack(proprios), [meta.instruction] * chunks)
    choices_BKA, logprobs_BKA = draw(policy, meta, observation)
    executed_KA = np.zeros(choices_BKA.shape[1:], dtype=np.float32)
    return [
        ChunkRecord(step, *row, executed_KA.copy(), meta.version)
        for step, row in enumerate(zip(images, proprios, choices_BKA, logprobs_BKA, strict=True))
    ]


def draw(policy, meta, observation) -> tuple[np.ndarray, np.ndarray]:
    """Choices and log-probabilities (B, K, A), row i of step i, drawn as the variant draws them."""
    config, steps = policy.network.config, range(len(observation[0]))

    def keyed(noise, shape) -> torch.Tensor:
        each = [noise(0, meta.slot_index, step, (1, *shape)) for step in steps]
        return torch.from_numpy(np.concatenate(each))

    if config.is_autoregressive:
        images, _, instructions = observation
        ids, _ = pad_prompts([policy.model.prompts.encode(i) for i in instructions], 0)
        temperatures = torch.full((len(steps),), meta.temperature)
        noise = keyed(gumbel_noise, (1, A, BINS))
        dtype = next(policy.network.parameters()).dtype
        pixels = policy.model.images.pixels(images).to(dtype)
        drawn = generate(policy.network, ids, pixels, temperatures, noise)
        output = ActionOutput(drawn.logits_BKAV, None, drawn.hidden_BKAH)
        choices = drawn.tokens_BKA
        distribution = action_distribution(output, meta.temperature)
    else:
        output = policy.forward(*observation, np.zeros(0))
        scale = initial_scale(config) if config.is_regression else None
        distribution = action_distribution(output, meta.temperature, scale)
        noise = laplace_noise if config.is_regression else gumbel_noise
        choices = distribution.sample(keyed(noise, distribution.noise_shape[1:]))
    kind = np.float32 if config.is_regression else np.int32
    return choices.numpy().astype(kind), distribution.logprobs(choices).numpy()

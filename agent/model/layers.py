"""Every matrix product of a forward, counted from the config; what `cost` adds up.

Widths, depths and row counts come from the config alone; no module is built.
"""

from dataclasses import dataclass

from agent.model.config import OpenVLAConfig
from agent.model.regression import RESIDUAL_BLOCKS
from agent.model.towers import TowerConfig

PIXEL_CHANNELS = 3


@dataclass(frozen=True)
class Layer:
    """`count` equal matrix products of a forward.

    `rows` is per sample, 0 for a layer that is stored and never run. `used` of the `outputs` are
    computed. `adapted`: in the published LoRA target list. `input_grad`: training sends a gradient
    through it. `in_block`: in a transformer block, which is what checkpointing recomputes.
    """

    part: str
    name: str
    inputs: int
    outputs: int
    rows: int
    count: int = 1
    bias: bool = True
    used: int | None = None
    adapted: bool = True
    input_grad: bool = True
    in_block: bool = True

    @property
    def parameters(self) -> int:
        """Stored weights and biases."""
        return self.count * self.outputs * (self.inputs + int(self.bias))

    @property
    def parameters_read(self) -> int:
        """Weights and biases that a forward reads."""
        used = self.outputs if self.used is None else self.used
        return self.count * used * (self.inputs + int(self.bias)) if self.rows else 0

    @property
    def flops(self) -> int:
        """Of one sample's forward."""
        used = self.outputs if self.used is None else self.used
        return 2 * self.count * self.rows * self.inputs * used

    def pair_parameters(self, rank: int) -> int:
        """Of the LoRA pairs of these layers."""
        return self.count * rank * (self.inputs + self.outputs)

    def pair_flops(self, rank: int) -> int:
        """Of the LoRA pairs of these layers, one sample's forward."""
        used = self.outputs if self.used is None else self.used
        return 2 * self.count * self.rows * rank * (self.inputs + used)


@dataclass(frozen=True)
class Attention:
    """Self-attention of `count` blocks over `tokens` tokens; `keys` are more with a KV cache."""

    part: str
    tokens: int
    keys: int
    width: int
    count: int

    @property
    def flops(self) -> int:
        """Of one sample's forward."""
        return 4 * self.count * self.tokens * self.keys * self.width


def list_layers(
    config: OpenVLAConfig, prompt_tokens: int, *, whole_vocabulary: bool | None = None
) -> list[Layer]:
    """The matrix products of one forward, the stored ones that never run included.

    Args:
        prompt_tokens: length of the prompt, pads included if there are any.
        whole_vocabulary: logits over it instead of the action bins; None: as greedy decoding of
            this config needs.
    """
    if whole_vocabulary is None:
        whole_vocabulary = config.greedy_range == "vocabulary"
    used = None if whole_vocabulary else config.n_action_bins
    llama = config.llama_config()
    logit_rows = 0 if config.is_regression else config.action_tokens
    layers = []
    for tower in config.towers:
        layers += _tower_layers(config, tower, llama.hidden_size)
    layers += _projector_layers(config, llama.hidden_size)
    layers += llm_layers(config, config.sequence_length(prompt_tokens), logit_rows, used)
    return layers + _head_layers(config, llama.hidden_size)


def list_attention(config: OpenVLAConfig, prompt_tokens: int) -> list[Attention]:
    """The self-attention of one forward without a cache."""
    images, tokens = config.num_images, config.sequence_length(prompt_tokens)
    vision = []
    for tower in config.towers:
        length = _tower_tokens(config, tower)
        vision.append(Attention("vision", length, length, tower.dim, (tower.depth - 1) * images))
    return [*vision, llm_attention(config, tokens, tokens)]


def _tower_tokens(config: OpenVLAConfig, tower: TowerConfig) -> int:
    prefix = tower.registers + int(tower.kind == "dinov2")
    return config.patches_per_image + prefix


def _tower_layers(config: OpenVLAConfig, tower: TowerConfig, llm_dim: int) -> list[Layer]:
    dim, mlp = tower.dim, tower.mlp_dim
    images = config.num_images
    rows = images * _tower_tokens(config, tower)
    pixels = PIXEL_CHANNELS * tower.patch_size**2
    patches = images * config.patches_per_image
    shapes = {"qkv": (dim, 3 * dim), "proj": (dim, dim), "fc1": (dim, mlp), "fc2": (mlp, dim)}
    layers = [
        Layer("vision", "patch_embed", pixels, dim, patches, input_grad=False, in_block=False)
    ]
    for name, (inputs, outputs) in shapes.items():
        layers.append(Layer("vision", name, inputs, outputs, rows, tower.depth - 1))
        layers.append(Layer("vision", name, inputs, outputs, 0))
    if tower.kind == "siglip":
        pool = {"q": (dim, dim), "kv": (dim, 2 * dim), **shapes}
        del pool["qkv"]
        layers += [Layer("vision", f"attn_pool.{n}", *s, 0) for n, s in pool.items()]
    if config.use_film:
        film = Layer("vision", "film", llm_dim, dim, images, 2 * (tower.depth - 1), adapted=False,
                     input_grad=False)  # fmt: skip
        layers += [film, Layer("vision", "film", llm_dim, dim, 0, 2, adapted=False)]
    return layers


def _projector_layers(config: OpenVLAConfig, llm_dim: int) -> list[Layer]:
    vision_dim = sum(tower.dim for tower in config.towers)
    rows = config.num_images * config.patches_per_image
    shapes = ((vision_dim, 4 * vision_dim), (4 * vision_dim, llm_dim), (llm_dim, llm_dim))
    return [
        Layer("projector", f"fc{number}", inputs, outputs, rows, in_block=False)
        for number, (inputs, outputs) in enumerate(shapes, 1)
    ]


def llm_layers(config: OpenVLAConfig, rows: int, logit_rows: int, used: int | None) -> list[Layer]:
    llama = config.llama_config()
    dim, mlp = llama.hidden_size, llama.intermediate_size
    queries = llama.num_attention_heads * llama.head_dim
    keys = llama.num_key_value_heads * llama.head_dim
    attention = {"q": (dim, queries), "k": (dim, keys), "v": (dim, keys), "o": (queries, dim)}
    feed_forward = {"gate": (dim, mlp), "up": (dim, mlp), "down": (mlp, dim)}
    groups = ((attention, llama.attention_bias), (feed_forward, llama.mlp_bias))
    layers = [
        Layer("llm", f"{name}_proj", *shape, rows, llama.num_hidden_layers, bias)
        for shapes, bias in groups
        for name, shape in shapes.items()
    ]
    head = Layer("llm", "lm_head", dim, llama.vocab_size, logit_rows, 1, False, used,
                 in_block=False)  # fmt: skip
    return [*layers, head]


def llm_attention(config: OpenVLAConfig, tokens: int, keys: int) -> Attention:
    llama = config.llama_config()
    width = llama.num_attention_heads * llama.head_dim
    return Attention("llm", tokens, keys, width, llama.num_hidden_layers)


def _head_layers(config: OpenVLAConfig, llm_dim: int) -> list[Layer]:
    """What `.pt` files beside the checkpoint hold: proprio projector, L1 regression head."""
    layers = []
    if config.use_proprio:
        shapes = {"proprio.fc1": (config.proprio_dim, llm_dim), "proprio.fc2": (llm_dim, llm_dim)}
        layers += [
            Layer("heads", name, *shape, 1, adapted=False, input_grad=False, in_block=False)
            for name, shape in shapes.items()
        ]
    if config.is_regression:
        inputs, steps = config.action_dim * llm_dim, config.chunk_size
        for name, shape, count in (
            ("head.fc1", (inputs, llm_dim), 1),
            ("head.ffn", (llm_dim, llm_dim), RESIDUAL_BLOCKS),
            ("head.fc2", (llm_dim, config.action_dim), 1),
        ):
            layers.append(Layer("heads", name, *shape, steps, count, adapted=False, in_block=False))
    return layers


def count_vectors(config: OpenVLAConfig) -> dict[str, tuple[int, int]]:
    """Parameters outside matrix products by part: (run, never run).

    Norms, LayerScale, position and prefix embeddings, and the token embedding table.
    """
    llama = config.llama_config()
    dim = llama.hidden_size
    run, idle = 0, 0
    for tower in config.towers:
        dino = tower.kind == "dinov2"
        block = (6 if dino else 4) * tower.dim  # two norms; LayerScale twice
        run += (tower.depth - 1) * block + config.patches_per_image * tower.dim
        run += (1 + tower.registers) * tower.dim if dino else 0
        # The last block and the final norm; attention pooling has a query and a norm.
        idle += block + 2 * tower.dim + (0 if dino else 3 * tower.dim)
    counts = {"vision": (run, idle)}
    counts["llm"] = (llama.vocab_size * dim + (2 * llama.num_hidden_layers + 1) * dim, 0)
    if config.is_regression:
        norms = 2 * config.action_dim * dim + 2 * (RESIDUAL_BLOCKS + 1) * dim
        counts["heads"] = (norms, 0)
    return counts

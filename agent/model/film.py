"""The FiLM checkpoint `vision_backbone--<step>_checkpoint.pt` as tensors of our towers.

The reference wraps every block (`blocks.N.block.*` beside `scale` and `shift`), keeps the wrapper's
`vision_backbone.` prefix, and saves the towers with their LoRA factors unmerged. Factors are
merged here, in float32, with the alpha that its training script fixes: min(rank, 16).
"""

import re

from torch import Tensor

from agent.model.errors import ModelFolderError

PREFIX = "vision_backbone."
_BLOCK = re.compile(r"(\.blocks\.\d+)\.(block|scale|shift)\.")
_LORA = re.compile(r"\.lora_([AB])\.default\.weight$")
SFT_ALPHA_MAX = 16


def read_film_backbone(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under this package's key names (`vision_backbone.featurizer...`).

    Raises:
        ModelFolderError: a LoRA factor without its partner or its base.
    """
    plain: dict[str, Tensor] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name = _rename(key)
        match = _LORA.search(name)
        if match:
            factors.setdefault(name[: match.start()], {})[match.group(1)] = tensor
        else:
            plain[name.replace(".base_layer.", ".")] = tensor
    for module, pair in factors.items():
        if set(pair) != {"A", "B"} or f"{module}.weight" not in plain:
            raise ModelFolderError(
                f"the FiLM checkpoint's LoRA of {module} needs lora_A, lora_B and base_layer, got "
                f"{sorted(pair)}"
            )
        plain[f"{module}.weight"] = _merge(module, plain[f"{module}.weight"], **pair)
    return plain


def _merge(module: str, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """float32 (out, in, ...); a convolution's A is (rank, in, height, width)."""
    rank = len(A) if A.ndim else 0
    expected = ((rank, *weight.shape[1:]), (len(weight), rank, *[1] * (weight.ndim - 2)))
    if rank == 0 or (A.shape, B.shape) != expected:
        raise ModelFolderError(
            f"the FiLM checkpoint's LoRA of {module}: expected lora_A and lora_B of shapes "
            f"{expected} for a weight {tuple(weight.shape)}, got {tuple(A.shape)}, {tuple(B.shape)}"
        )
    scale = min(rank, SFT_ALPHA_MAX) / rank
    update = B.float().flatten(1) @ A.float().flatten(1)
    return weight.float() + scale * update.view_as(weight)


def write_film_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, without LoRA factors: the towers' tensors under the published names."""

    def published(match: re.Match[str]) -> str:
        return f"{match.group(1)}.{match.group(2) or 'block.'}"

    return {
        re.sub(r"(\.blocks\.\d+)\.(?:film\.((?:scale|shift)\.))?", published, key): tensor
        for key, tensor in state.items()
        if key.startswith(PREFIX)
    }


def _rename(key: str) -> str:
    name = key if key.startswith(PREFIX) else PREFIX + key

    def ours(match: re.Match[str]) -> str:
        block, part = match.groups()
        return f"{block}." if part == "block" else f"{block}.film.{part}."

    return _BLOCK.sub(ours, name)

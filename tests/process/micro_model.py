"""A model folder small enough that a whole run of processes takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agent.model.checkpoint import save_model
from agent.model.nano import as_cnn, build_nano_config, build_nano_tokenizer, init_nano
from sim_bridge import toy

STATS = {
    "micro": {
        "action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 7},
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
    }
}


CAUSAL = {"num_images": 1, "use_proprio": False, "chunk_size": 1}


def write_micro_model(folder: Path, variant: str = "oft-discrete") -> None:
    """A fresh model, 16 wide, that knows the toy suite's instructions."""
    folder.mkdir()
    tokenizer = build_nano_tokenizer(list(toy.INSTRUCTIONS.values()), n_action_bins=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    nano = build_nano_config(
        tokenizer, STATS, image_size=toy.IMAGE_SIZE, patch_size=8, n_action_bins=16, chunk_size=3
    )
    tower: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    config = (
        as_cnn(nano, width=16)
        if variant == "cnn"
        else dataclasses.replace(
            nano,
            variant=variant,
            **(CAUSAL if variant == "openvla" else {}),
            vision_towers=tuple(dataclasses.replace(t, **tower) for t in nano.vision_towers),
            text_config={**nano.text_config, **text},
        )
    )
    save_model(init_nano(config, seed=0), folder, step=0)

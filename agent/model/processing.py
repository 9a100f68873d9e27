"""Instructions to prompt ids."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from agent.model.config import OpenVLAConfig
from agent.model.errors import ModelFolderError
from agent.process.instruction import clean_instruction
from agent.process.stand_ins import describe_stand_in

PROMPT_TEMPLATE = "In: What action should the robot take to {task}?\nOut:"


def append_empty_token(ids: list[int], empty_token_id: int) -> list[int]:
    """End a prompt with the empty token, where the first action's logits are read."""
    return ids if ids[-1] == empty_token_id else [*ids, empty_token_id]


def pad_prompts(prompts: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor | None]:
    """Stack prompts as [BOS][pads][rest], the layout the model reads.

    Returns:
        int64 ids (B, L) and the mask (B, L), None when no row is padded.
    """
    width = max(len(p) for p in prompts)
    fill = [width - len(p) for p in prompts]
    ids = [[p[0], *[pad_token_id] * n, *p[1:]] for p, n in zip(prompts, fill, strict=True)]
    if not any(fill):
        return torch.tensor(ids), None
    mask = [[1, *[0] * n, *[1] * (len(p) - 1)] for p, n in zip(prompts, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


class PromptEncoder:
    """Instructions to prompt ids with the model folder's tokenizer.json.

    Raises:
        ModelFolderError: no tokenizer, or its ids disagree with the config.
    """

    def __init__(self, folder: Path, config: OpenVLAConfig) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            raise ModelFolderError(f"{path} does not exist: the model folder needs a tokenizer")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            what = describe_stand_in(path) or (
                "is no tokenizer, or damaged: copy it from the published checkpoint"
            )
            raise ModelFolderError(f"{path} {what}") from error
        self.config = config
        empty = self.tokenizer.token_to_id(config.empty_token)
        if empty is None:
            raise ModelFolderError(
                f"{path} lacks the empty token {config.empty_token!r}; copy the file from the "
                "published checkpoint"
            )
        largest = max(self.tokenizer.get_vocab().values())
        if largest >= config.text_config["vocab_size"]:
            raise ModelFolderError(
                f"{path} has ids up to {largest}, text_config.vocab_size is "
                f"{config.text_config['vocab_size']}: it belongs to another model"
            )
        self.empty_token_id = empty
        self.unknown_token_id = self.tokenizer.token_to_id("<unk>")
        self._spelt: dict[str, str] = {}
        self._cache: dict[str, list[int]] = {}

    def encode(self, task: str) -> list[int]:
        """Prompt ids of one instruction: BOS first, empty token last.

        Instructions that differ in nothing one can see make one prompt.

        Raises:
            ValueError: the instruction is empty, holds words outside the vocabulary, or is too
                long.
        """
        if task not in self._spelt:
            self._spelt[task] = clean_instruction(task)
        return self.encode_as_told(self._spelt[task])

    def encode_as_told(self, text: str) -> list[int]:
        """Prompt ids of exactly this text, as `encode`, for what a recorded episode was told.

        Earlier servers served and recorded an instruction with whatever white space it had.

        Raises:
            ValueError: it holds words outside the vocabulary, or is too long.
        """
        if text not in self._cache:
            self._cache[text] = self._encode(text)
        return self._cache[text]

    def _encode(self, task: str) -> list[int]:
        ids = self.tokenizer.encode(PROMPT_TEMPLATE.format(task=task.lower())).ids
        if not ids or ids[0] != self.config.bos_token_id:
            ids = [self.config.bos_token_id, *ids]
        if self.unknown_token_id in ids:
            raise ValueError(f"instruction {task!r} has words that the tokenizer does not know")
        ids = append_empty_token(ids, self.empty_token_id)
        length, limit = self.config.sequence_length(len(ids)), self.config.llm_max_length
        if length > limit:
            raise ValueError(f"instruction of {len(ids)} tokens makes {length} > {limit} positions")
        return ids

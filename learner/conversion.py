"""The supervised conversion of an L1-head policy into a token policy, and how well they agree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agent.durable import LOCK_NAME, locked, replacing
from agent.model.actions import decode_tokens, encode_actions
from agent.model.devices import check_device
from agent.model.errors import ModelFolderError
from agent.model.folder import load_saved
from agent.model.lora import save_adapter
from agent.model.merging import merge_adapter
from agent.model.policy_model import PolicyModel, load_policy_model
from agent.process.folders import begin_in
from agent.process.terminal import counting
from learner.checkpoint import load_optimizer_tensors, optimizer_tensors
from learner.demonstrations import DemonstrationError, Demonstrations, load_demonstrations
from learner.policy import LoraPolicy
from learner.pretrain import learning_rate_at, soft_label_loss
from learner.progress import write_json
from learner.randomness import keyed_rng
from learner.update import build_optimizer, clip_gradient

if TYPE_CHECKING:
    from learner.to_discrete import ConversionSettings

HELD_OUT_BLOCKS, BLOCKS = (9, 19), 20  # of the frames in file order: neighbours are alike
CHECKPOINT_NAME, ADAPTER_NAME, REPORT_NAME = "checkpoint.pt", "adapter", "agreement.json"
NOT_FOR_RESUMING = ("work", "checkpoint_every", "threads", "device")
"""Settings that may change when a conversion goes on."""


@dataclass(frozen=True)
class Agreement:
    """Greedy actions of the token policy against the L1 head's, clipped to what bins can say.

    difference: mean |difference| of the motion dimensions, normalised units. gripper: share of
    steps whose gripper command is the same.
    """

    difference: float
    gripper: float
    frames: int


class TokenStudent(LoraPolicy):
    """The network of an L1-head policy, with an adapter that learns the tokens.

    Raises ModelFolderError for a policy of another variant.
    """

    def __init__(self, model: PolicyModel, rank: int, alpha: float, seed: int) -> None:
        if not model.config.is_regression:
            raise ModelFolderError(
                f"{model.name} is {model.config.variant}: only a checkpoint with an L1 head "
                "(oft-l1) is converted, token policies learn as they are"
            )
        super().__init__(model, rank, alpha, seed)

    def teach(self, demos: Demonstrations, rows: np.ndarray) -> np.ndarray:
        """The L1 head's normalised actions on frames, without the adapter: f32 (B, K, A)."""
        with torch.no_grad(), self._peft.disable_adapter():
            means_BKA = self._forward(demos, rows).means_BKA
        assert means_BKA is not None
        return means_BKA.cpu().numpy()

    def logits(self, demos: Demonstrations, rows: np.ndarray) -> Tensor:
        """The adapted network's logits over the action bins (B, K, A, V), with gradient."""
        hidden_BKAH = self._forward(demos, rows).hidden_BKAH
        logits = self.network.action_logits(hidden_BKAH.flatten(1, 2))
        return logits.unflatten(1, hidden_BKAH.shape[1:3])

    def save(self, folder: Path) -> None:
        """The plain PEFT folder."""
        save_adapter(self._peft, folder)

    def _forward(self, demos: Demonstrations, rows: np.ndarray) -> Any:
        images = np.stack([getattr(demos, name)[rows] for name in self.model.cameras], axis=1)
        instructions = [demos.instructions[task] for task in demos.task[rows]]
        return self.forward(images, demos.proprio[rows], instructions, np.zeros(0))


def convert(base: Path, out: Path, settings: ConversionSettings) -> tuple[Agreement, Agreement]:
    """Train (resuming what `work` holds) and write the folder `out`.

    Returns:
        the agreement on held-out frames before and after.

    Raises:
        ModelFolderError: the base has no L1 head or cannot be used, `out` exists, or `work` holds
            another conversion.
        DemonstrationError: frames that cannot be trained on.
    """
    if out.is_symlink() or out.exists():
        raise ModelFolderError(f"{out} exists: name a new folder, nothing is overwritten")
    work = Path(settings.work) if settings.work else out.with_name(f"{out.name}.work")
    torch.set_num_threads(settings.threads)
    check_device("device", settings.device)
    demos = load_demonstrations([Path(folder) for folder in settings.demos])
    model = load_policy_model(
        str(base),
        settings.architecture,
        settings.cameras,
        settings.unnorm_key,
        getattr(torch, settings.dtype),
        settings.device,
    )
    student = TokenStudent(model, settings.rank, settings.alpha, settings.seed)
    conversion = Conversion(student, demos, settings)
    begin_in(work, LOCK_NAME, "work")
    with locked(work):
        before = conversion.measure()
        _show("before", before)
        _train(conversion, work / CHECKPOINT_NAME)
        after = conversion.measure()
        _show("after", after)
        student.save(work / ADAPTER_NAME)
        config = model.config
        stated = {
            **settings.architecture,
            "variant": "oft-discrete",
            "num_images": config.num_images,
            "use_proprio": config.use_proprio,
        }
        merge_adapter(base, work / ADAPTER_NAME, out, stated, leave_out=("action_head",))
        both = {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)}
        write_json(work / REPORT_NAME, both)
    print(f"{out}: the token policy; {work} is no longer needed")
    return before, after


def _train(conversion: Conversion, checkpoint: Path) -> None:
    with counting("to-discrete", conversion.settings.steps) as count:
        conversion.run(
            checkpoint, lambda step, loss: count.update(step, f"to-discrete, loss {loss:.3f}")
        )


def _show(when: str, agreement: Agreement) -> None:
    print(
        f"{when:<7} mean |difference| {agreement.difference:.4f} in normalised units, gripper "
        f"agrees {agreement.gripper:.1%} ({agreement.frames} held-out frames)",
        flush=True,
    )


class Conversion:
    """The optimisation: step, checkpoint, resume, and the comparison on held-out frames."""

    def __init__(
        self, student: TokenStudent, demos: Demonstrations, settings: ConversionSettings
    ) -> None:
        self.student, self.demos, self.settings = student, demos, settings
        self.training, self.held_out = _split(len(demos))
        _check_frames(student.model, demos)
        self.n_bins = student.network.config.n_action_bins
        self.optimizer = build_optimizer(student.parameters, settings.learning_rate, 0.0)
        self.step = 0

    def run(self, checkpoint: Path, report: Callable[[int, float], None]) -> None:
        """Train to the end, going on from `checkpoint` if it exists.

        Raises:
            ModelFolderError: the checkpoint is another conversion's.
            NonFiniteGradient: the last checkpoint is from before it.
        """
        settings = self.settings
        self._resume(checkpoint)
        parameters = list(self.student.parameters.values())
        while self.step < settings.steps:
            rng = keyed_rng(settings.seed, "to-discrete", self.step)
            rows = self.training[rng.integers(len(self.training), size=settings.batch_size)]
            rate = learning_rate_at(
                self.step, settings.steps, settings.learning_rate, settings.warmup_steps
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self.loss(rows)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_gradient(parameters, settings.clip_norm)
            self.optimizer.step()
            self.step += 1
            report(self.step, loss.item())
            if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
                self._save(checkpoint)

    def loss(self, rows: np.ndarray) -> Tensor:
        """Cross-entropy against the tokens of the L1 head's actions on these frames."""
        tokens = encode_actions(self.student.teach(self.demos, rows), self.n_bins)
        logits_BKAV = self.student.logits(self.demos, rows)
        tokens_BKA = torch.from_numpy(tokens).to(logits_BKAV.device)
        return soft_label_loss(logits_BKAV, tokens_BKA, self.settings.label_sigma_bins)

    @torch.no_grad()
    def measure(self) -> Agreement:
        """How far the greedy tokens are from the L1 head's actions on held-out frames."""
        wanted = min(self.settings.held_out_frames, len(self.held_out))
        rows = self.held_out[np.linspace(0, len(self.held_out) - 1, wanted).astype(np.int64)]
        differences, grippers = [], []
        for start in range(0, len(rows), self.settings.batch_size):
            batch = rows[start : start + self.settings.batch_size]
            actions = np.clip(self.student.teach(self.demos, batch), -1.0, 1.0)
            tokens = self.student.logits(self.demos, batch).argmax(-1).cpu().numpy()
            decoded = decode_tokens(tokens, self.n_bins)
            differences.append(np.abs(decoded - actions)[..., :-1])
            to_env = self.student.model.actions.to_env
            grippers.append(to_env(tokens)[..., -1] == to_env(actions)[..., -1])
        return Agreement(
            float(np.concatenate(differences).mean()),
            float(np.concatenate(grippers).mean()),
            len(rows),
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        settings = dataclasses.asdict(self.settings)
        kept = {name: value for name, value in settings.items() if name not in NOT_FOR_RESUMING}
        base = self.student.model.base_sha256
        return {**kept, "base_sha256": base, "frames": len(self.demos)}

    def _save(self, path: Path) -> None:
        with replacing(path) as file:
            torch.save(
                {
                    "identity": json.dumps(self._identity(), sort_keys=True),
                    "step": self.step,
                    "adapter": self.student.adapter_tensors(),
                    "optimizer": optimizer_tensors(self.optimizer, self.student.parameters),
                },
                file,
            )

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        saved = load_saved(path)
        if saved["identity"] != json.dumps(self._identity(), sort_keys=True):
            raise ModelFolderError(
                f"{path} belongs to a conversion with other settings, frames or base: use the same "
                "ones to go on, or remove it (or name another work=) to start afresh"
            )
        self.step = saved["step"]
        self.student.load_adapter(saved["adapter"])
        load_optimizer_tensors(self.optimizer, self.student.parameters, saved["optimizer"])


def _check_frames(model: PolicyModel, demos: Demonstrations) -> None:
    wanted, found = model.config.proprio_dim, demos.proprio.shape[1]
    if model.config.use_proprio and wanted != found:
        raise DemonstrationError(f"proprio has {found} dimensions, {model.name} wants {wanted}")
    try:
        for instruction in demos.instructions:
            model.prompts.encode(instruction)
    except ValueError as error:
        raise DemonstrationError(f"{error}: it is no instruction for {model.name}") from error


def _split(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training, and held-out ones: two runs of a twentieth each.

    Raises:
        DemonstrationError: too few frames.
    """
    if frames < BLOCKS:
        raise DemonstrationError(f"{frames} frames are too few: expected at least {BLOCKS}")
    block_of = np.arange(frames) * BLOCKS // frames
    is_held_out = np.isin(block_of, HELD_OUT_BLOCKS)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)

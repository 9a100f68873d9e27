"""Behaviour cloning of the nano policies from scripted demonstrations.

Two stages, one optimiser each. `see`: towers and projector, or convolutions, learn to localise the
scene. `act`: the whole policy learns the expert's action chunks (cross-entropy over the action
bins, labels softened over neighbouring bins) while a small head keeps regressing the target. The
weights that are saved are an exponential moving average.

Batches are a pure function of (seed, stage, step), so a run that was killed resumes exactly.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.durable import replacing
from agent.model.actions import ActionCodec, normalise_proprio
from agent.model.cnn import CnnPolicy
from agent.model.folder import load_saved
from agent.model.images import images_to_pixels
from agent.model.network import PolicyNetwork
from agent.model.policy_model import norm_bounds
from agent.model.processing import PromptEncoder, pad_prompts
from agent.process.errors import ConfigError
from learner.auxiliary import SceneReadout, Standardiser, TargetReadout
from learner.demonstrations import Demonstrations

SAVED = ("config", "step", "modules", "average", "optimizer")  # of a stage


@dataclass
class PretrainConfig:
    """Budget and optimisation of one pretraining run; steps are batches."""

    seed: int = 0
    batch_size: int = 64
    see_steps: int = 2000
    act_steps: int = 10000
    # The rate decays as if for this many steps (0: act_steps). Stopping short of it leaves the
    # nano policy on purpose imperfect: it is there to be improved by trial and error.
    act_schedule_steps: int = 0
    see_learning_rate: float = 2e-3
    act_learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    label_sigma_bins: float = 2.0
    target_weight: float = 0.3
    ema_decay: float = 0.999
    checkpoint_every: int = 500
    clip_norm: float = 1.0
    compile: bool = False


@dataclass(frozen=True)
class Batch:
    """Model inputs and labels of one step."""

    input_ids_BL: Tensor
    mask_BL: Tensor | None
    pixels_BNCHW: Tensor
    proprio_BP: Tensor
    tokens_BKA: Tensor
    state_BS: Tensor
    target_BD: Tensor


class FrameSampler:
    """Batches of demonstration frames; step t of a stage is always the same batch."""

    def __init__(
        self,
        demos: Demonstrations,
        prompts: PromptEncoder,
        model: PolicyNetwork,
        unnorm_key: str,
        config: PretrainConfig,
    ) -> None:
        self.demos, self.config, self.image_size = demos, config, model.config.image_size
        # Every batch has one shape: all prompts are padded to the longest.
        self.prompts, self.mask = pad_prompts(
            [prompts.encode(text) for text in demos.instructions], model.config.pad_token_id
        )
        chunk = demos.actions[:, : model.config.chunk_size]
        bounds = norm_bounds(model.config, unnorm_key, "action")
        codec = ActionCodec(bounds, model.config.n_action_bins, model.config.gripper)
        self.tokens = codec.to_tokens(chunk)
        proprio = norm_bounds(model.config, unnorm_key, "proprio")
        self.proprio = normalise_proprio(demos.proprio, proprio)
        self.state = torch.from_numpy(demos.state)
        self.target = torch.from_numpy(demos.target)
        self.standardise_state = Standardiser(self.state)
        self.standardise_target = Standardiser(self.target)

    def batch(self, stage: int, step: int) -> Batch:
        """The batch of (stage, step)."""
        key = np.array([self.config.seed, stage], dtype=np.uint64)
        counter = np.array([0, 0, 0, step], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        rows = rng.integers(len(self.demos), size=self.config.batch_size)
        images = np.stack([self.demos.agentview[rows], self.demos.wrist[rows]], axis=1)
        task = torch.from_numpy(self.demos.task[rows].astype(np.int64))
        return Batch(
            self.prompts[task],
            None if self.mask is None else self.mask[task],
            images_to_pixels(images, self.image_size),
            torch.from_numpy(self.proprio[rows]),
            torch.from_numpy(self.tokens[rows]),
            self.standardise_state(self.state[rows]),
            self.standardise_target(self.target[rows]),
        )


def soft_label_loss(logits_BKAV: Tensor, tokens_BKA: Tensor, sigma_bins: float) -> Tensor:
    """Cross-entropy against a Gaussian over neighbouring bins; the gripper's label stays hard.

    Bins are ordered, so a near miss should cost less than a far one. The last action dimension
    is a two-valued command without order.
    """
    bins = torch.arange(logits_BKAV.shape[-1], device=logits_BKAV.device)
    distance = (bins - tokens_BKA[..., :-1, None]) / sigma_bins
    soft = torch.softmax(-0.5 * distance.square(), dim=-1)
    logprobs = torch.log_softmax(logits_BKAV, dim=-1)
    motion = -(soft * logprobs[..., :-1, :]).sum(-1).mean()
    gripper = F.nll_loss(logprobs[..., -1, :].flatten(0, -2), tokens_BKA[..., -1].flatten())
    dims = tokens_BKA.shape[-1]
    return ((dims - 1) * motion + gripper) / dims


def learning_rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to 2% of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))


class Stage:
    """One optimisation over `modules`: step, moving average, checkpoint and resume."""

    def __init__(
        self,
        index: int,
        modules: nn.ModuleDict,
        loss: Callable[[Batch], tuple[Tensor, dict[str, float]]],
        config: PretrainConfig,
    ) -> None:
        self.index, self.modules, self.loss, self.config = index, modules, loss, config
        self.steps = (config.see_steps, config.act_steps)[index]
        self.schedule_steps = (config.see_steps, config.act_schedule_steps or self.steps)[index]
        self.peak = (config.see_learning_rate, config.act_learning_rate)[index]
        self.optimizer = torch.optim.AdamW(
            modules.parameters(), lr=self.peak, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.average = {k: v.detach().clone() for k, v in modules.state_dict().items()}
        self.step = 0

    def run(
        self,
        sampler: FrameSampler,
        checkpoint: Path,
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """Train to the stage's end, continuing from `checkpoint` if it exists.

        report: called every step with (step, diagnostics).
        """
        self._resume(checkpoint)
        while self.step < self.steps:
            rate = learning_rate_at(
                self.step, self.schedule_steps, self.peak, self.config.warmup_steps
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, figures = self.loss(sampler.batch(self.index, self.step))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            report(self.step, {"loss": loss.item(), **figures})
            if self.step % self.config.checkpoint_every == 0 or self.step == self.steps:
                self._save(checkpoint)

    def load_average(self) -> None:
        """Put the moving average into the modules."""
        self.modules.load_state_dict(self.average)

    def _update_average(self) -> None:
        # A short run must not average over its initialisation.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    def _save(self, path: Path) -> None:
        with replacing(path) as file:
            torch.save(
                {
                    "config": dataclasses.asdict(self.config),
                    "step": self.step,
                    "modules": self.modules.state_dict(),
                    "average": self.average,
                    "optimizer": self.optimizer.state_dict(),
                },
                file,
            )

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        saved = load_saved(path)
        if not isinstance(saved, dict) or not saved.keys() >= set(SAVED):
            raise ConfigError(
                f"{path} is no checkpoint of a stage: delete it to begin the stage anew"
            )
        if saved["config"] != dataclasses.asdict(self.config):
            raise ConfigError(
                f"{path} was made with {saved['config']}, this run has "
                f"{dataclasses.asdict(self.config)}: remove it to start afresh"
            )
        self.step = saved["step"]
        self.modules.load_state_dict(saved["modules"])
        self.average = saved["average"]
        self.optimizer.load_state_dict(saved["optimizer"])


def see_stage(model: PolicyNetwork, sampler: FrameSampler, config: PretrainConfig) -> Stage:
    """Stage 0: what sees regresses the whole scene's privileged state."""
    sight = _modules_that_see(model)
    see = nn.Sequential(*sight.values())
    with torch.no_grad():
        tokens, dim = see(sampler.batch(0, 0).pixels_BNCHW[:1]).shape[1:]
    readout = SceneReadout(tokens, dim, sampler.state.shape[-1])
    modules = nn.ModuleDict({**sight, "readout": readout})

    def loss(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        patches = see(batch.pixels_BNCHW)
        error = (readout(patches) - batch.state_BS).square().mean(0)
        return error.mean(), {"worst_state_error": error.max().item()}

    return Stage(0, modules, loss, config)


def _modules_that_see(model: PolicyNetwork) -> dict[str, nn.Module]:
    """What makes patches (B, patches of all images, D) of pixels, one after the other."""
    if isinstance(model, CnnPolicy):
        return {"encoder": model.encoder}
    return {"vision": model.vision_backbone, "projector": model.projector}


def act_stage(model: PolicyNetwork, sampler: FrameSampler, config: PretrainConfig) -> Stage:
    """Stage 1: behaviour cloning of the whole policy with the target regression beside it."""
    readout = TargetReadout(model.config.llama_config().hidden_size, sampler.target.shape[-1])
    modules = nn.ModuleDict({"policy": model, "readout": readout})
    policy = torch.compile(model) if config.compile else model

    def loss(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        output = policy(batch.input_ids_BL, batch.pixels_BNCHW, batch.proprio_BP, batch.mask_BL)
        action = soft_label_loss(output.logits_BKAV, batch.tokens_BKA, config.label_sigma_bins)
        error = (readout(output.hidden_BKAH[:, 0, 0]) - batch.target_BD).square()
        target = error.sum() / max(1, error.numel())  # 0 where no target is known
        gap = (output.logits_BKAV.argmax(-1) - batch.tokens_BKA)[..., :3].abs().float().mean()
        figures = {"action": action.item(), "target": target.item(), "bins_off": gap.item()}
        return action + config.target_weight * target, figures

    return Stage(1, modules, loss, config)

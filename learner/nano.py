"""`python -m learner.nano demos=[DIR] out=DIR work=DIR`: the nano policy, from demonstrations.

Starts from nothing, or with `base=DIR` from a model folder, which it then fine-tunes. With
`variant=cnn` it is the convolutional baseline instead. Composition root of the pretraining;
`learner/pretrain.py` holds the algorithm.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.process import load_config, run_command
from agent.process.checks import require_range
from agent.process.errors import ConfigError, PerennialError
from agent.process.folders import begin_in
from agent.process.shown import LINE_MAX_CHARS, printable

if TYPE_CHECKING:
    from agent.model.network import PolicyNetwork
    from agent.model.processing import PromptEncoder
    from learner.demonstrations import Demonstrations

LOG_NAME = "pretrain.jsonl"  # in `work`: the first file there
MADE_NAME = "made.txt"  # in `work`: which folder it writes the model to
VARIANTS = ("oft-discrete", "cnn")


@dataclass
class NanoConfig:
    """What to build from where; overrides are `key=value` on the command line."""

    demos: list[str] = field(default_factory=list)
    out: str = ""
    work: str = ""
    base: str = ""
    variant: str = "oft-discrete"  # of a policy that starts from nothing
    readable: list[str] = field(default_factory=list)  # instructions beyond the demonstrated ones
    replace: bool = False  # a model at `out` that another `work` made
    unnorm_key: str = "tabletop"
    patch_size: int = 16
    chunk_size: int = 5
    torch_threads: int = 2
    pretrain: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_range("patch_size", self.patch_size, 1, 1024)
        require_range("chunk_size", self.chunk_size, 1, 1000)
        require_range("torch_threads", self.torch_threads, 1, 1024)


def main(arguments: list[str] | None = None) -> None:
    """Compose the config, set thread counts before torch loads, build and save the model."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        config = load_config(NanoConfig, None, sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        sys.exit(f"learner.nano: {error}")
    if not (config.demos and config.out and config.work):
        sys.exit("learner.nano: expected demos=[DIR,...] out=DIR work=DIR")
    if config.variant not in VARIANTS:
        sys.exit(f"learner.nano: variant must be one of {VARIANTS}, got {config.variant!r}")
    if reason := _refuse_out(config):
        sys.exit(f"learner.nano: {reason}")
    try:
        begin_in(Path(config.work), LOG_NAME, "work")
        build(config)
    except (PerennialError, OSError) as error:
        sys.exit(f"learner.nano: {printable(error, LINE_MAX_CHARS)}")


def _refuse_out(config: NanoConfig) -> str:
    """Why the model must not be written to `out`; "" if it may be."""
    out, made = Path(config.out), Path(config.work) / MADE_NAME
    is_ours = made.is_file() and made.read_bytes() == str(out.resolve()).encode()
    if config.replace or is_ours or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return ""
    return f"{out} is there and was not made with this work={config.work}; name a new out=DIR"


def build(config: NanoConfig) -> None:
    """Train (resuming what `work` holds) and save the model folder `out`."""
    import torch

    from agent.model.checkpoint import save_model
    from agent.process.terminal import counting
    from learner.demonstrations import load_demonstrations
    from learner.pretrain import FrameSampler, PretrainConfig, act_stage, see_stage

    torch.set_num_threads(config.torch_threads)
    demos = load_demonstrations([Path(d) for d in config.demos])
    settings = PretrainConfig(**config.pretrain)
    work, out = Path(config.work), Path(config.out)
    log = (work / LOG_NAME).open("a", buffering=1)
    torch.manual_seed(settings.seed)
    model, prompts = _start(config, demos, settings.seed)
    sampler = FrameSampler(demos, prompts, model, config.unnorm_key, settings)
    stages = {"see": see_stage, "act": act_stage}
    if config.base or not demos.state.shape[1]:
        del stages["see"]  # it can already see, or what is to be seen is not known
    with log:
        for name, make in stages.items():
            stage = make(model, sampler, settings)
            with counting(name, stage.steps) as count:

                def report(step: int, figures: dict[str, float], count=count, name=name) -> None:
                    count.update(step, f"{name}, loss {figures['loss']:.3f}")
                    if step % 50 == 0:
                        log.write(json.dumps({"stage": name, "step": step, **figures}) + "\n")

                stage.run(sampler, work / f"{name}.pt", report)
            stage.load_average()
    (work / MADE_NAME).write_text(str(out.resolve()), "utf-8")
    save_model(model.eval(), out, settings.act_steps)
    shutil.copy(work / "tokenizer.json", out / "tokenizer.json")


def _start(
    config: NanoConfig, demos: "Demonstrations", seed: int
) -> tuple["PolicyNetwork", "PromptEncoder"]:
    """The model to train and its tokenizer (put into `work`): the base's, or fresh ones."""
    from agent.model.checkpoint import load_model
    from agent.model.nano import as_cnn, build_nano_config, build_nano_tokenizer, init_nano
    from agent.model.processing import PromptEncoder
    from learner.demonstrations import normalisation_statistics

    work = Path(config.work)
    if config.base:
        shutil.copy(Path(config.base) / "tokenizer.json", work / "tokenizer.json")
        model = load_model(Path(config.base)).requires_grad_(True)
        return model, PromptEncoder(work, model.config)
    tokenizer = build_nano_tokenizer(list(demos.instructions), unlearned=config.readable)
    tokenizer.save(str(work / "tokenizer.json"))
    geometry = build_nano_config(
        tokenizer,
        normalisation_statistics(demos, config.unnorm_key),
        image_size=demos.agentview.shape[1],
        patch_size=config.patch_size,
        chunk_size=config.chunk_size,
    )
    model = init_nano(as_cnn(geometry) if config.variant == "cnn" else geometry, seed)
    return model, PromptEncoder(work, model.config)


if __name__ == "__main__":
    run_command(main)

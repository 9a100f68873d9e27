"""The convolutional policy: what it looks at, what is stored, and what of it an adapter trains."""

import dataclasses
from pathlib import Path

import pytest
import torch
from closeness import assert_near
from model_fixtures import STATS, random_inputs, tiny_config
from safetensors.torch import load_file
from torch import Tensor, nn

from agent.model.checkpoint import load_model, save_model
from agent.model.cnn import RGB, CnnPolicy
from agent.model.config import OpenVLAConfig
from agent.model.errors import ModelFolderError
from agent.model.inspection import inspect_folder
from agent.model.lora import attach_lora, lora_targets
from agent.model.nano import as_cnn, build_nano_config, build_nano_tokenizer, init_nano
from agent.model.processing import pad_prompts


def tiny_cnn(**choices: int | bool) -> CnnPolicy:
    model = init_nano(as_cnn(tiny_config(**choices)), seed=0)
    assert isinstance(model, CnnPolicy)
    return model.eval()


def inputs_of(model: CnnPolicy, batch: int) -> tuple[Tensor, ...]:
    return random_inputs(model.config, batch)


@torch.no_grad()
def test_every_input_reaches_every_action() -> None:
    model = tiny_cnn()
    ids, pixels, proprio = inputs_of(model, 1)
    base = model(ids, pixels, proprio).logits_BKAV
    other = ids.clone()
    other[0, 4] += 1
    changed = [(other, pixels, proprio), (ids, pixels, -proprio)]
    for image in range(model.config.num_images):
        # One corner of one camera.
        seen = pixels.clone()
        seen[:, image, :, :4, :4] += 1.0
        changed.append((ids, seen, proprio))
    for inputs in changed:
        assert (model(*inputs).logits_BKAV - base).abs().amax(-1).min() > 0


@torch.no_grad()
def test_a_row_depends_on_nothing_but_itself() -> None:
    """Not on the pads of its prompt, nor on its neighbours, in training mode neither."""
    model = tiny_cnn().train()
    _, pixels, proprio = inputs_of(model, 2)
    prompts = [[1, 5, 6, 7, 8, 3], [1, 9, 5, 3]]
    ids, mask = pad_prompts(prompts, model.config.pad_token_id)
    together = model(ids, pixels, proprio, mask).logits_BKAV
    for row, prompt in enumerate(prompts):
        one = slice(row, row + 1)
        alone = model(torch.tensor([prompt]), pixels[one], proprio[one]).logits_BKAV
        assert_near(together[one], alone)
    assert not list(model.buffers()), "statistics that change as batches are seen"


@torch.no_grad()
def test_the_encoder_shares_its_weights_and_keeps_places_apart() -> None:
    model = tiny_cnn()
    _, pixels, _ = inputs_of(model, 3)
    seen = model.encoder(pixels)
    assert seen.shape == (3, 2 * model.encoder.places, 64)
    assert torch.equal(
        model.encoder(pixels.flip(1)), seen.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    )
    # Row 1, camera 1 by torch's own layers; 32 pixels become 2 x 2 places.
    x = pixels[1:2, 1, :RGB]
    for block in model.encoder.blocks:
        x = nn.functional.gelu(block.norm(block.conv(x)))
    assert x.shape[2:] == (2, 2)
    by_place = x[0].reshape(64, 4).T
    assert_near(seen[1, 4:], by_place)
    assert not torch.allclose(seen[1, 4], seen[1, 5])


@torch.no_grad()
def test_the_hidden_state_is_what_the_logits_were_read_from() -> None:
    model = tiny_cnn()
    output = model(*inputs_of(model, 2))
    chunk = (model.config.chunk_size, model.config.action_dim)
    assert output.hidden_BKAH.shape == (2, *chunk, model.config.llama_config().hidden_size)
    logits = model.output_layer(output.hidden_BKAH[:, 0, 0]).view(output.logits_BKAV.shape)
    assert_near(logits, output.logits_BKAV)
    assert torch.equal(model.greedy_tokens(output.hidden_BKAH), output.logits_BKAV.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("use_proprio", [True, False])
def test_folder_round_trip(use_proprio: bool, tmp_path: Path) -> None:
    model = tiny_cnn(use_proprio=use_proprio)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())
    save_model(model, tmp_path, step=7)
    assert bool(list(tmp_path.glob("proprio_projector--7*"))) == use_proprio
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    ids, pixels, proprio = inputs_of(model, 2)
    given = (ids, pixels, proprio if use_proprio else None)
    assert torch.equal(loaded(*given).logits_BKAV, model(*given).logits_BKAV)
    found = inspect_folder(tmp_path, {})
    assert found.variants == ("cnn",)
    assert set(found.parameters) - {"proprio_projector"} == {"words", "encoder", "decoder"}
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == {k for k in model.state_dict() if not k.startswith("proprio_projector")}


def test_only_the_adapter_trains_and_a_fresh_one_changes_nothing() -> None:
    model = tiny_cnn()
    inputs = inputs_of(model, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model(*inputs).logits_BKAV.detach()
    targets = lora_targets(model)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert targets == [name for name in layers if not name.startswith("proprio_projector.")]
    wrapped = attach_lora(model, rank=2, alpha=4.0)
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    attached = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in trained}
    assert attached == set(targets)
    assert torch.equal(wrapped(*inputs).logits_BKAV, logits)
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    wrapped(*inputs).logits_BKAV.square().sum().backward()
    assert all(p.grad.norm() > 0 for name, p in trained.items() if "lora_B" in name)
    optimiser.step()
    assert not torch.equal(wrapped(*inputs).logits_BKAV, logits)
    after = {key.replace(".base_layer.", "."): value for key, value in model.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_it_is_about_as_large_as_the_nano_policy() -> None:
    nano = build_nano_config(build_nano_tokenizer(["push"]), STATS)
    sizes = [
        sum(parameter.numel() for parameter in init_nano(config, 0).parameters())
        for config in (nano, as_cnn(nano))
    ]
    assert 0.5 < sizes[1] / sizes[0] < 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_film": True}, "variant cnn has no FiLM"),
        ({"greedy_range": "vocabulary"}, "greedy_range vocabulary"),
        ({"vision_towers": tiny_config().vision_towers}, "variant cnn has no towers"),
    ],
)
def test_what_it_cannot_do_is_refused(change: dict[str, object], message: str) -> None:
    config = as_cnn(tiny_config())
    with pytest.raises(ModelFolderError, match=message):
        dataclasses.replace(config, **change)
    with pytest.raises(ModelFolderError, match="vision towers must be"):
        OpenVLAConfig.from_dict(config.to_dict(), variant="oft-discrete")

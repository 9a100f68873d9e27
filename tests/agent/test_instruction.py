"""One spelling of an instruction, wherever it comes in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from episode_fixtures import make_order as stored_order
from hypothesis import given
from hypothesis import strategies as st
from server_fixtures import finish, make_order, observe, post, running, start_own, take_slot
from tokenizers import Tokenizer, models, normalizers, trainers

from agent.config import AgentConfig, TaskConfig
from agent.episode import read_episode
from agent.model.config import OpenVLAConfig
from agent.model.policy_model import NANO_FOLDER
from agent.model.processing import PROMPT_TEMPLATE, PromptEncoder
from agent.process.instruction import clean_instruction
from agent.recovery import recover_state
from agent.server.validation import checked_order
from agent.wire.errors import ConfigError, WireError

ROOT = Path(__file__).parents[2]
CLEAN = "put the red cube in the tray"
UNCLEAN = (
    f"{CLEAN}\n",
    f" {CLEAN}",
    f"\t{CLEAN}\r\n",
    "put  the red\tcube\nin the tray",
    "put\u00a0the red\u2003cube in the tray",  # no-break space, em space
    "put the red\u200b cube in the tray\ufeff",  # zero width space, byte order mark
    "put the r\u00aded cube in the tray",  # soft hyphen
    "\u202eput the red cube in the tray",  # right-to-left override
    "put the red\ufe0f cube in the tray",  # variation selector
    f"{CLEAN}.",
    f"{CLEAN} . ",
)
EMPTY = ("", " ", "\n", "\u200b", "\u3164", ".", " ... ", "-", "\u2800")
UNREADABLE = ("put \x1b[31mthe cube", "put\x00", "put \ud800", "put \ue000", "put \x7f")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    """A tokenizer that keeps white space, as the published one does; the nano's drops it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    text = f"In: What action should the robot take to {CLEAN}?\nOut: . ! é \t\n"
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text] * 3, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = OpenVLAConfig.from_dict(json.loads((NANO_FOLDER / "config.json").read_text()))
    return PromptEncoder(folder, config)


@pytest.mark.parametrize("text", UNCLEAN)
def test_what_one_cannot_see_makes_no_other_prompt(prompts: PromptEncoder, text: str) -> None:
    assert clean_instruction(text) == CLEAN
    assert prompts.encode(text) == prompts.encode(CLEAN)


def test_letters_are_composed() -> None:
    assert clean_instruction("put the cafe\u0301 down") == "put the caf\u00e9 down"


@pytest.mark.parametrize("text", [*EMPTY, *UNREADABLE, "x" * 5000])
def test_what_tells_a_robot_nothing_is_refused_everywhere(
    prompts: PromptEncoder, text: str
) -> None:
    with pytest.raises(ValueError, match="instruction"):
        prompts.encode(text)
    with pytest.raises(WireError, match="order o: "):
        checked_order(make_order("o", instruction=text))
    with pytest.raises(ConfigError, match=r"tasks\.own\.instruction: "):
        AgentConfig(tasks={"own": TaskConfig(text)})


@given(st.text(max_size=60))
def test_a_clean_instruction_stays_as_it_is(text: str) -> None:
    try:
        cleaned = clean_instruction(text)
    except ValueError:
        return
    assert clean_instruction(cleaned) == cleaned
    assert cleaned.isprintable()
    assert cleaned == " ".join(cleaned.split())


def test_shipped_instructions_are_clean() -> None:
    golden = json.loads((ROOT / "tests/golden/openvla_oft/prompt_ids.json").read_text())
    before, after = PROMPT_TEMPLATE.split("{task}")
    # One of them tests the tokenizer with two spaces in a row; that is no task.
    prompts = [
        case["prompt"]
        for case in golden["prompts"]
        if case["prompt"].endswith(after) and "  " not in case["prompt"]
    ]
    told = [prompt.removeprefix(before).removesuffix(after) for prompt in prompts]
    for file in (ROOT / "configs/suite").glob("*.yaml"):
        told += re.findall(r"instruction: ([^},\n]+)", file.read_text())
    assert len(told) > 100
    assert [text for text in told if clean_instruction(text) != text] == []


def test_what_is_recorded_is_what_was_served(tmp_path: Path) -> None:
    own = {"own": TaskConfig(f"  {CLEAN}. ")}
    with running(tmp_path, tasks=own) as server, server.client() as robot:
        with server.operator() as operator:
            post(operator, make_order("o", instruction=f"{CLEAN}\u200b\n"))
            post(operator, make_order("o", instruction=CLEAN))  # the same order again
        started = [start_own(robot), take_slot(robot)[1]]
        for episode in started:
            robot.request(observe(episode.episode_id, 0))
        requests = [request for batch in server.policy.batches for request in batch]
        assert [request.instruction for request in requests] == [CLEAN, CLEAN]
        for episode in started:
            robot.request(finish(episode.episode_id))
    for episode in started:
        path = next(tmp_path.rglob(f"{episode.episode_id}.mcap"))
        assert read_episode(path).meta.instruction == CLEAN


def test_orders_of_an_earlier_server_are_known_again(tmp_path: Path) -> None:
    from agent.ledger import Ledger

    ledger = Ledger(tmp_path / "agent.db")
    with ledger.transaction():
        ledger.add_orders(
            [stored_order("a", instruction=f" {CLEAN}\n"), stored_order("b", instruction="")]
        )
    orders = recover_state(tmp_path, ledger).orders
    assert [order.instruction for order in orders] == [CLEAN, ""]

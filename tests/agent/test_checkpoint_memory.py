"""Loading streams: host memory never holds two copies of a checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_fixtures import narrow_config, random_model
from patience import HANG_S
from safetensors import safe_open

from agent.model.checkpoint import save_model
from agent.model.folder import INDEX_FILE

MIB = 2**20
SHARD_BYTES = 60 * MIB
ALLOWANCE_BYTES = 40 * MIB
"""Code that loading imports, allocator slack and the transient of the finiteness check."""

# A fresh process, for its peak is its own; the peak before loading is reset.
PROBE = """
import json, sys, torch
from pathlib import Path
from agent.model.checkpoint import load_model

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

load_model(Path(sys.argv[2]))
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
model = load_model(Path(sys.argv[1]), getattr(torch, sys.argv[4]), sys.argv[3])
print(json.dumps({"peak": resident("VmHWM") - before, "after": resident("VmRSS") - before}))
"""


def measure(folder: Path, small: Path, device: str, dtype: str) -> dict[str, int]:
    command = [sys.executable, "-c", PROBE, str(folder), str(small), device, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_peak_is_one_shard_beyond_the_models_own_copy(tmp_path: Path) -> None:
    folder, small = tmp_path / "large", tmp_path / "small"
    save_model(random_model(narrow_config((2, 2, 1), variant="oft-discrete")), small, step=1)
    config = narrow_config((2, 2, 6), variant="oft-l1")
    text = {**config.text_config, "hidden_size": 1024, "intermediate_size": 4096}
    values = {**config.to_dict(), "text_config": text}
    model = random_model(type(config).from_dict(values))
    stored_bytes = sum(p.numel() * 2 for p in model.parameters())
    save_model(model, folder, step=1, shard_bytes=SHARD_BYTES)
    del model
    shards = set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values())
    largest = max((folder / name).stat().st_size for name in shards)
    assert len(shards) >= 4
    with safe_open(folder / sorted(shards)[0], framework="pt") as shard:
        assert len(shard.keys()) > 1
    for dtype, factor in (("bfloat16", 1), ("float32", 2)):
        # On the meta device nothing stays behind: what is left is what an accelerator's host sees.
        there = measure(folder, small, "meta", dtype)
        assert there["peak"] <= largest + ALLOWANCE_BYTES, there
        here = measure(folder, small, "cpu", dtype)
        assert here["peak"] <= factor * stored_bytes + largest + ALLOWANCE_BYTES, here
        assert here["after"] <= factor * stored_bytes + ALLOWANCE_BYTES, here

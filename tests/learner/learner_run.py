"""One learning process in memory, with a fake agent, that can be made to crash."""

import threading
from unittest.mock import patch

from fake_agent import FakeAgent
from micro_fixtures import CAMERAS, INSTRUCTIONS, micro_policy, renewed_policy
from patience import HANG_S
from safetensors.torch import load_file

from agent.adapters import AdapterStore
from agent.metrics import LearnerMetrics
from agent.model.lora import rank_of
from learner import filmstrip
from learner.algorithm_config import AlgorithmConfig
from learner.assembly import assemble
from learner.checkpoint import CheckpointFolder
from learner.config import EvalConfig, LearnerConfig, SuiteConfig, TaskConfig
from learner.continual.settings import ContinualConfig
from learner.loop import Loop, Watchers
from learner.metrics import Exports
from learner.progress import ProgressLog
from learner.publication import Identity, Publication
from learner.receiver import Inbox, Receiver
from learner.store import LearnerStore, immediate_disposition

STATE_SIZE = 16  # of the micro model
IMAGE_SIZE = 16  # too; larger strips of its noise cost a PNG more than learning does
PLAYED = {}  # by every run here: a version names its content, and the base is always the same


def make_config(continual=None, **algorithm):
    settings = {"group_size": 3, "groups_per_iteration": 2, "iterations_per_task": 1,
                "optimizer_steps_per_iteration": 2, "lora_rank": 2, "lora_alpha": 2.0,
                "learning_rate": 5e-3, "resample_degenerate": 2}  # fmt: skip
    return LearnerConfig(
        suite=SuiteConfig(
            "toy",
            [TaskConfig(slug, INSTRUCTIONS[i % 2], 50) for i, slug in enumerate("abh")],
            ["a", "b"], ["h"], train_init_states=4, eval_init_states=2,
        ),
        algorithm=AlgorithmConfig(**{**settings, **algorithm}),
        evaluation=EvalConfig(slots_per_state=1),
        continual=continual or ContinualConfig(),
        cameras=list(CAMERAS), temperature=1.6, micro_batch=4, unnorm_key="micro",
    )  # fmt: skip


def load_published(policy, tensors):
    """A published adapter, also one of a higher rank than the policy trains."""
    rank = rank_of(policy.adapter_tensors())
    past, last = {}, {}
    for name, tensor in tensors.items():
        axis = 0 if ".lora_A." in name else 1
        past[name], last[name] = tensor.split([tensor.shape[axis] - rank, rank], dim=axis)
    policy.set_past(past if rank_of(past) else {})
    policy.load_adapter(last)


class Crash(Exception):
    """A process that ends here."""


class Run:
    """One learning process on `folder`; several may follow one another."""

    def __init__(self, folder, config, agent=None, crash_at=None):
        for name in ("state", "agent", "model"):
            (folder / name).mkdir(exist_ok=True)
        self.folder, self.config = folder, config
        config.adapters_dir = str(folder / "adapters")
        self.policy = micro_policy(folder / "model")
        self.serving = renewed_policy(folder / "model")  # one run plays at a time
        self.base, self.served = self.policy.adapter_tensors(), ""
        self.adapters = AdapterStore(folder / "adapters")
        self.store = LearnerStore(folder / "state" / "learner.db")
        self.agent = agent or FakeAgent(folder / "agent", self.serve, PLAYED)
        self.agent.policy_of = self.serve
        self.exports = Exports(LearnerMetrics())
        self.exports.resume(*self.store.totals())
        self.inbox = Inbox(
            folder / "state" / "episodes",
            self.store,
            lambda episode: self.exports.accept_episode(immediate_disposition(episode)),
        )
        self.stop = threading.Event()
        made = assemble(config, self.policy, self.inbox, self.agent, self.stop.is_set)
        self.critic, self.continual = made.critic, made.continual
        publication = Publication(
            self.policy, self.store, CheckpointFolder(folder / "state" / "checkpoints"),
            self.adapters, self.agent,
            Identity("0" * 64, config.algorithm.method, ["a", "b"], config),
            self.critic, self.continual,
        )  # fmt: skip
        if crash_at:
            self.plant(publication, *crash_at)
        watchers = Watchers(
            self.exports,
            ProgressLog(folder / "state" / "progress.jsonl"),
            folder / "state" / "filmstrips",
        )
        self.loop = Loop(
            config, made.teacher, made.continual, publication, self.inbox, watchers,
            self.stop.is_set,
        )  # fmt: skip

    def serve(self, version):
        if version != self.served:
            tensors = self.base
            if version != "base":
                tensors = load_file(self.adapters.verify(version) / "adapter_model.safetensors")
            load_published(self.serving, tensors)
            self.served = version
        return self.serving

    def plant(self, publication, update_id, moment):
        """Crash at a moment of an update's publication."""
        target, name = {
            "before_commit": (self.store, "commit_update"),
            "before_publish": (self.adapters, "publish"),
            "before_activate": (self.agent, "activate"),
        }[moment]
        original, calls = getattr(target, name), []

        def crash(*args, **kwargs):
            calls.append(name)
            if len(calls) == update_id:
                raise Crash
            return original(*args, **kwargs)

        setattr(target, name, crash)
        self.restore = lambda: setattr(target, name, original)

    def go(self):
        receiver = Receiver(self.agent, self.inbox, self.stop)
        receiver.start()
        try:
            with patch.object(filmstrip, "FRAME_PIXELS", IMAGE_SIZE):
                return self.loop.run()
        finally:
            self.stop.set()
            receiver.join(HANG_S)

"""The learning process: state directory, threads, signals, and the parts put together."""

import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

import torch

from agent.adapters import AdapterStore
from agent.durable import locked
from agent.model.devices import check_device
from agent.model.errors import ModelFolderError
from agent.model.policy_model import load_policy_model
from agent.wire.errors import ConfigError
from agent.wire.sockets import DealerClient
from learner.checkpoint import CheckpointFolder
from learner.config import LearnerConfig
from learner.critic import ValueHead
from learner.evaluation import GREEDY, ROLLOUT
from learner.grpo import GrpoTeacher
from learner.link import AgentLink, Session
from learner.loop import Loop, Teacher, Watchers
from learner.matrix import SuccessMatrix
from learner.metrics import LearnerMetrics
from learner.policy import LoraPolicy
from learner.ppo import PpoTeacher
from learner.progress import ProgressLog, write_json
from learner.publication import Identity, Publication
from learner.receiver import Inbox, Receiver
from learner.sft import SftTeacher
from learner.stopping import Stopped
from learner.store import LearnerStore

log = logging.getLogger(__name__)

RECEIVER_JOIN_S = 3.0


def learn(config: LearnerConfig) -> None:
    """Run to the end of the task sequence, or until SIGTERM or SIGINT.

    Raises:
        PerennialError: something the user can mend.
        Stopped: asked to stop; the run is not finished.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    torch.set_num_threads(config.threads)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    state_dir = Path(config.state_dir)
    with locked(state_dir):
        store = LearnerStore(state_dir / "learner.db")
        try:
            _learn_locked(config, state_dir, store, stop)
        except Stopped:
            log.info("stopped; the same command resumes")
            raise
        finally:
            store.close()


def _learn_locked(
    config: LearnerConfig, state_dir: Path, store: LearnerStore, stop: threading.Event
) -> None:
    algorithm = config.algorithm
    policy = _load_policy(config)
    base_sha256 = policy.model.base_sha256
    metrics = LearnerMetrics()
    write_json(state_dir / "endpoints.json", {"http": _serve(metrics, config.http_port)})
    inbox = Inbox(state_dir / "episodes", store)
    session = Session(store, f"{socket.gethostname()}-{os.getpid()}", base_sha256)

    def new_link() -> AgentLink:
        client = DealerClient(config.operator_endpoint, config.request_timeout_s)
        return AgentLink(session, client, stop)

    link = new_link()
    identity = Identity(
        base_sha256, algorithm.method, list(config.suite.train_tasks), config.resume_settings()
    )
    critic = _new_critic(config, policy)
    publication = Publication(
        policy,
        store,
        CheckpointFolder(state_dir / "checkpoints"),
        AdapterStore(Path(config.adapters_dir)),
        link,
        identity,
        critic,
    )
    watchers = Watchers(
        metrics, ProgressLog(state_dir / "progress.jsonl"), state_dir / "filmstrips"
    )
    teacher: Teacher
    if algorithm.method == "sft":
        teacher = SftTeacher(config, policy, stop.is_set)
    elif critic is not None:
        teacher = PpoTeacher(config, policy, critic, inbox, link, stop.is_set)
    else:
        teacher = GrpoTeacher(config, policy, inbox, link, stop.is_set)
    loop = Loop(config, teacher, publication, inbox, watchers, stop.is_set)
    receiver = Receiver(new_link(), inbox, stop)
    receiver.start()
    try:
        started_s = time.monotonic()
        matrices = loop.run()
        write_json(state_dir / "results.json", results(config, matrices, store))
        watchers.progress.write(
            "done", version=publication.version, wall_s=time.monotonic() - started_s
        )
    finally:
        stop.set()
        receiver.join(RECEIVER_JOIN_S)
        link.close()
        watchers.progress.close()


def _load_policy(config: LearnerConfig) -> LoraPolicy:
    algorithm = config.algorithm
    check_device("device", config.device)
    try:
        model = load_policy_model(
            config.model_dir,
            config.architecture,
            config.cameras,
            config.unnorm_key,
            getattr(torch, config.dtype),
            config.device,
        )
    except (ModelFolderError, OSError) as error:
        raise ConfigError(f"model_dir: {error}") from error
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"model_dir: no memory left on {config.device}: give the learner a GPU of its own, or "
            "dtype=bfloat16"
        ) from error
    if algorithm.learn_action_scale and not model.config.is_regression:
        raise ConfigError(
            f"algorithm.learn_action_scale: {model.name} is {model.config.variant}, only oft-l1 "
            "has an action scale"
        )
    config.cameras = list(model.cameras)
    return LoraPolicy(
        model,
        algorithm.lora_rank,
        algorithm.lora_alpha,
        config.seed,
        algorithm.learn_action_scale,
        config.recompute_activations,
    )


def _new_critic(config: LearnerConfig, policy: LoraPolicy) -> ValueHead | None:
    if config.algorithm.ppo is None:
        return None
    state_size = policy.network.config.llama_config().hidden_size
    head = ValueHead(state_size, config.algorithm.ppo.hidden_sizes, config.seed)
    return head.to(policy.device)


def results(
    config: LearnerConfig, matrices: dict[str, SuccessMatrix], store: LearnerStore
) -> dict[str, object]:
    """The final figures, as results.json holds them."""
    suite, rollout, greedy = config.suite, matrices[ROLLOUT], matrices[GREEDY]
    return {
        "suite": suite.name,
        "seed": config.seed,
        "temperature": config.temperature,
        "tasks": rollout.tasks,
        "train_tasks": list(suite.train_tasks),
        "held_out_tasks": list(suite.held_out_tasks),
        "matrix": rollout.to_dict(),
        "greedy": greedy.to_dict(),
        "metrics": rollout.metrics(),
        "greedy_metrics": {
            name: value
            for name, value in greedy.metrics().items()
            if name.removesuffix("_se") in ("base_avg", "final_avg", "gain")
        },
        "counts": store.counts(),
        "settings": config.resume_settings(),
    }


def _serve(metrics: LearnerMetrics, port: int) -> str:
    try:
        return metrics.serve(port)
    except OSError as error:
        raise ConfigError(
            f"http_port={port}: {error.strerror or error}; choose another, or 0 for any free one"
        ) from error

"""The learning process: state directory, threads, signals, and the parts put together."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from agent.adapters import AdapterStore
from agent.durable import database_errors, locked
from agent.http import HttpServer
from agent.measuring import add_ready_source
from agent.metrics import LearnerMetrics
from agent.model.devices import check_device
from agent.model.errors import ModelFolderError
from agent.model.lora import AdapterError
from agent.model.policy_model import load_policy_model
from agent.process import StopFlag as ProcessFlag
from agent.process.clock import go_on_from
from agent.process.shown import printable, start_logging
from agent.wire.errors import ConfigError
from agent.wire.keys import find_client_keys
from agent.wire.sockets import DealerClient
from agent.wire.systemd import MAIN, ServiceManager
from learner.assembly import Parts, assemble
from learner.checkpoint import CheckpointFolder
from learner.config import LearnerConfig
from learner.evaluation import GREEDY, ROLLOUT, conditions
from learner.exhausted import memory_errors
from learner.given import publish_given
from learner.health import Vitals
from learner.link import AgentLink, Session
from learner.loop import Loop, Watchers
from learner.matrix import SuccessMatrix
from learner.metrics import Exports
from learner.patience import until_taken
from learner.policy import LoraPolicy
from learner.progress import ProgressLog, last_stamp_s, write_json
from learner.publication import Identity, Publication
from learner.receiver import RECEIVER_THREAD, Inbox, Receiver
from learner.steps import longest_step_s
from learner.stopping import StopFlag, Stopped
from learner.store import LearnerStore, immediate_disposition

log = logging.getLogger(__name__)

RECEIVER_JOIN_S = 3.0
REASON_CHARS = 600  # of a refusal, in the progress log


def learn(config: LearnerConfig) -> None:
    """Run to the end of the task sequence, or until SIGTERM or SIGINT.

    Raises:
        PerennialError: something the user can mend.
        Stopped: asked to stop; the run is not finished.
    """
    start_logging()
    torch.set_num_threads(config.threads)
    manager = ServiceManager(threads=(MAIN, RECEIVER_THREAD))
    manager.show("loading the model")
    current: list[Exports] = []  # filled once the state folder is ours

    def status() -> str:
        return "".join(exports.state.replace("_", " ") for exports in current)

    stop = StopFlag(lambda: manager.beat(status))

    state_dir = Path(config.state_dir)
    with (
        memory_errors(),
        locked(state_dir),
        database_errors(state_dir / "learner.db"),
        closing(LearnerStore(state_dir / "learner.db")) as store,
        _exporting(config, state_dir, store) as (exports, vitals),
    ):
        current.append(exports)
        try:
            _learn_locked(config, state_dir, store, stop, manager, exports, vitals)
        except Stopped:
            log.info("stopped; the same command resumes")
            raise
        finally:
            manager.close()


def _learn_locked(
    config: LearnerConfig,
    state_dir: Path,
    store: LearnerStore,
    stop: threading.Event,
    manager: ServiceManager,
    exports: Exports,
    vitals: Vitals,
) -> None:
    keys = find_client_keys(config.keys_dir)  # before what takes long
    policy = _load_policy(config)
    progress = ProgressLog(state_dir / "progress.jsonl", stop.is_set)

    def on_refused(order_id: str, why: str) -> None:
        exports.refuse_order()
        progress.write("order_refused", order_id=order_id, reason=printable(why, REASON_CHARS))

    inbox = Inbox(
        state_dir / "episodes",
        store,
        lambda episode: exports.accept_episode(immediate_disposition(episode)),
        exports.quarantine_episode,
        on_refused,
    )
    learner_id = f"{socket.gethostname()}-{os.getpid()}"
    session = Session(store, learner_id, policy.model.base_sha256, inbox.note_epoch)

    def new_link() -> AgentLink:
        client = DealerClient(config.operator_endpoint, config.request_timeout_s, keys=keys)
        return AgentLink(session, client, stop, inbox.refuse)

    policy.on_forward = inbox.should_stop = stop.is_set  # which is a sign of life
    manager.allow(longest_step_s(config, policy))
    link = new_link()
    parts = assemble(config, policy, inbox, link, stop.is_set)
    publication = _new_publication(config, policy, parts, store, link, stop.is_set)
    base_version = publish_given(
        config.start_adapter,
        config.start_adapter_scale,
        publication.adapters,
        policy.model.base_sha256,
    )
    watchers = Watchers(exports, progress, state_dir / "filmstrips")
    loop = Loop(
        config, parts.teacher, parts.continual, publication, inbox, watchers, stop.is_set,
        base_version,
    )  # fmt: skip
    receiver = Receiver(new_link(), inbox, stop)
    receiver.start()
    exports.watch_agent(lambda: session.has_agent)
    vitals.loaded(session, receiver)

    def on_stop() -> None:
        manager.stopping()
        stop.set()

    try:
        with ProcessFlag().working(on_stop):
            started_s = time.monotonic()
            manager.ready(f"asking the agent at {config.operator_endpoint}")
            matrices = loop.run()
            exports.enter("done")
            figures = results(config, matrices, store)
            until_taken(lambda: write_json(state_dir / "results.json", figures), stop.is_set)
            watchers.progress.write(
                "done", version=publication.version, wall_s=time.monotonic() - started_s
            )
            if not config.exit_when_done:
                log.info("all tasks are learned; receiving episodes until stopped")
                inbox.idle(stop.is_set)
    finally:
        stop.set()
        receiver.join(RECEIVER_JOIN_S)
        link.close()
        watchers.progress.close()


@contextmanager
def _exporting(
    config: LearnerConfig, state_dir: Path, store: LearnerStore
) -> Iterator[tuple[Exports, Vitals]]:
    """Serves metrics and health meanwhile; endpoints.json says where."""
    go_on_from(last_stamp_s(state_dir / "progress.jsonl"))
    exports, vitals = Exports(LearnerMetrics()), Vitals()
    exports.tell_conditions(config)
    exports.resume(*store.totals())  # before the first scrape, which would take 0 for a reset
    exports.measure_disk(state_dir)
    add_ready_source(exports.metrics, vitals.health)
    http = HttpServer(
        config.http_host,
        config.http_port,
        exports.metrics.text,
        vitals.health,
        is_open=config.http_open,
    )
    http.start()
    try:
        write_json(state_dir / "endpoints.json", {"http": http.url})
        yield exports, vitals
    finally:
        http.close()


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
    try:
        return LoraPolicy(
            model,
            algorithm.lora_rank,
            algorithm.lora_alpha,
            config.seed,
            algorithm.learn_action_scale,
            config.recompute_activations,
            algorithm.full_rank,
        )
    except AdapterError as error:
        raise ConfigError(str(error)) from error


def _new_publication(
    config: LearnerConfig,
    policy: LoraPolicy,
    parts: Parts,
    store: LearnerStore,
    link: AgentLink,
    should_stop: Callable[[], bool],
) -> Publication:
    identity = Identity(
        policy.model.base_sha256,
        f"{config.algorithm.method}+{config.continual.method}",
        list(config.suite.train_tasks),
        config,
    )
    return Publication(
        policy,
        store,
        CheckpointFolder(Path(config.state_dir) / "checkpoints"),
        AdapterStore(Path(config.adapters_dir)),
        link,
        identity,
        parts.critic,
        parts.continual,
        should_stop,
    )


def results(
    config: LearnerConfig, matrices: dict[str, SuccessMatrix], store: LearnerStore
) -> dict[str, object]:
    """The final figures, as results.json holds them."""
    suite, rollout, greedy = config.suite, matrices[ROLLOUT], matrices[GREEDY]
    rollout.curves = store.training_curves()
    return {
        "suite": suite.name,
        "seed": config.seed,
        "temperature": config.temperature,
        "tasks": rollout.tasks,
        "train_tasks": list(suite.train_tasks),
        "held_out_tasks": list(suite.held_out_tasks),
        "matrix": rollout.to_dict() | conditions(config, ROLLOUT),
        "greedy": greedy.to_dict() | conditions(config, GREEDY),
        "metrics": rollout.metrics(),
        "greedy_metrics": {
            name: value
            for name, value in greedy.metrics().items()
            if name.removesuffix("_se") in ("base_avg", "final_avg", "gain")
        },
        "counts": store.counts(),
        "settings": config.resume_settings(),
    }

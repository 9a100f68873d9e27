"""What a learner can be refused for before anything is loaded: see `agent.preflight`."""

from dataclasses import replace
from pathlib import Path

from agent.config import PolicyConfig
from agent.preflight import check_http, check_instructions, check_state, look_at_model
from agent.wire.endpoints import check_endpoint
from agent.wire.errors import ConfigError
from agent.wire.keys import find_client_keys
from learner.config import LearnerConfig


def preflight(config: LearnerConfig) -> None:
    """Raises ConfigError for whatever cannot work."""
    check_state("state_dir", config.state_dir)
    check_state("adapters_dir", config.adapters_dir, is_held=False)
    check_http(config.http_host, config.http_port, config.http_open)
    find_client_keys(config.keys_dir)
    check_endpoint(config.operator_endpoint, bind=False)
    policy = PolicyConfig(
        model_dir=config.model_dir,
        architecture=config.architecture,
        cameras=list(config.cameras),
        unnorm_key=config.unnorm_key,
        device=config.device,
    )
    model = look_at_model(policy, "")
    check_instructions(
        model, {f"suite.tasks.{task.slug}": task.instruction for task in config.suite.tasks}
    )
    if config.algorithm.learn_action_scale and not model.config.is_regression:
        raise ConfigError(
            f"algorithm.learn_action_scale: {model.name} is {model.config.variant}, only oft-l1 "
            "has an action scale"
        )
    _check_demonstrations(config)
    if config.start_adapter:
        _check_start_adapter(config, replace(policy, adapter_slots=3))


def _check_demonstrations(config: LearnerConfig) -> None:
    from learner.demonstrations import DemonstrationError, read_tasks

    replay = config.continual.er
    sources = [("sft.demonstrations", config.sft.demonstrations, config.suite.train_tasks)]
    if replay is not None:  # the last task is never replayed
        name = "continual.er.demonstrations"
        sources.append((name, replay.demonstrations, config.suite.train_tasks[:-1]))
    for setting, folders, tasks in sources:
        try:
            if folders:
                read_tasks([Path(folder) for folder in folders], tasks)
        except (DemonstrationError, OSError) as error:
            raise ConfigError(f"{setting}: {error}") from error


def _check_start_adapter(config: LearnerConfig, policy: PolicyConfig) -> None:
    """That it can be read, is of this base, and fits the network."""
    from agent.adapter_export import read_origin
    from agent.model.lora import AdapterError, read_adapter
    from agent.model.policy_model import hash_policy_model
    from agent.model.slots import SlotBank

    folder = Path(config.start_adapter)
    try:
        tensors, spec = read_adapter(folder)
        network = look_at_model(policy, "").network
        SlotBank(network, 2, spec.rank).prepare(tensors, spec)
    except (AdapterError, OSError) as error:
        raise ConfigError(f"start_adapter: {error}") from error
    origin = read_origin(folder)
    if origin is None:
        return
    base = hash_policy_model(config.model_dir, config.architecture, config.cameras)
    if origin.base_sha256 != base:
        raise ConfigError(
            f"start_adapter: {folder} was trained on base {origin.base_sha256[:12]}, model_dir is "
            f"{base[:12]}: give the model that it was trained on"
        )

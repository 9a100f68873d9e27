"""Making an update last: checkpoint, commit, publish, activate, in this order, and resuming it.

Killed before the commit, the update never happened: its checkpoint is discarded at the next start
and its episodes are still unused. Killed after it, publish and activation are done again. What is
damaged afterwards is made again of what is not: an adapter of its checkpoint, an update of the
checkpoint before it and its episodes.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.adapters import AdapterStore, version_name
from agent.process.changes import explain, find_differences, schema_defaults
from agent.process.instruction import clean_instruction
from agent.process.json_files import DamagedFile, read_json
from agent.process.shown import shown
from agent.wire.messages import BASE_VERSION
from learner.checkpoint import (
    Checkpoint,
    CheckpointDamaged,
    CheckpointError,
    CheckpointFolder,
    Place,
    load_optimizer_tensors,
    optimizer_tensors,
)
from learner.config import LearnerConfig
from learner.continual.method import ContinualMethod
from learner.critic import Critic
from learner.link import AgentLink
from learner.patience import until_taken
from learner.policy import LoraPolicy
from learner.store import LearnerStore, UpdateRow

# Written by whoever copies a run's folder to go on from its last commit with another method.
FORK_FILE = "fork.json"
GENERATIONS = 2  # of checkpoints: should one be damaged, its update is made again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What every publish of this run says about itself."""

    base_sha256: str
    method: str
    train_tasks: list[str]
    config: LearnerConfig  # its resume_settings() must not change on resume


class Publication:
    """The committed state of a run: the newest version and everything needed to go on from it.

    Args:
        critic: of a method that has one. It is part of the checkpoints, never of what is published.
        continual: what it remembers is part of the checkpoints, too.
        should_stop: whether to give up waiting for a disk that takes nothing.
    """

    def __init__(
        self,
        policy: LoraPolicy,
        store: LearnerStore,
        checkpoints: CheckpointFolder,
        adapters: AdapterStore,
        link: AgentLink,
        identity: Identity,
        critic: Critic | None = None,
        continual: ContinualMethod | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy, self.store, self.checkpoints = policy, store, checkpoints
        self.adapters, self.link, self.identity = adapters, link, identity
        self.critic, self.continual = critic, continual or ContinualMethod()
        self.should_stop = should_stop
        self.version = BASE_VERSION

    def resume(self, optimizer: torch.optim.Optimizer) -> Place:
        """Restore policy, critic, optimiser and torch's RNG to the last commit; finish its publish.

        If its checkpoint is damaged, to the one before: the last update is then made again.

        Raises:
            CheckpointError: no checkpoint can be used, or the run was started with other settings.
        """
        updates = self.store.last_updates(GENERATIONS)
        discarded = self.checkpoints.keep_only(*(update.checkpoint for update in updates))
        if discarded:
            log.info("discarded uncommitted checkpoints: %s", ", ".join(discarded))
        last, checkpoint = self._load_newest(updates)
        if last is None or checkpoint is None:
            return Place()
        if self._fork() == last.checkpoint_sha256:
            log.info("going on from %s with settings of its own", last.version)
        else:
            self._check_settings(checkpoint.settings)
        self.policy.load_adapter(checkpoint.adapter)
        if self.critic is not None:
            _load_critic(self.critic, checkpoint.critic, last.version)
        self.continual.load_state(self._own_state(checkpoint))
        load_optimizer_tensors(optimizer, self._parameters, checkpoint.optimizer)
        torch.set_rng_state(checkpoint.torch_rng)
        self._finish(last)
        log.info("resumed after update %d, version %s", last.update_id, last.version)
        return checkpoint.place

    def commit(
        self,
        place: Place,
        optimizer: torch.optim.Optimizer,
        dispositions: dict[str, str],
        metrics: dict[str, float],
        parent: str,
    ) -> float:
        """Make the policy's present weights the version after `place.update_id`.

        Args:
            parent: the version that was improved.

        Returns how long the agent held its inference loop to activate it [s].
        """
        files = self.policy.adapter_files()
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        version = version_name(place.update_id, hashes)
        state = Checkpoint(
            place,
            self.policy.adapter_tensors(),
            optimizer_tensors(optimizer, self._parameters),
            torch.get_rng_state(),
            self.identity.config.resume_settings(),
            {} if self.critic is None else self.critic.state_dict(),
            self.continual.state(),
        )
        checkpoint, sha256 = until_taken(lambda: self.checkpoints.save(state), self.should_stop)
        update = UpdateRow(
            place.update_id, place.task_index, place.iteration, checkpoint, sha256, version,
            parent, metrics,
        )  # fmt: skip
        until_taken(lambda: self.store.commit_update(update, dispositions), self.should_stop)
        kept = self.store.last_updates(GENERATIONS)
        names = [each.checkpoint for each in kept]
        until_taken(lambda: self.checkpoints.keep_only(*names), self.should_stop)
        return self._finish(update)

    def _load_newest(self, updates: list[UpdateRow]) -> tuple[UpdateRow | None, Checkpoint | None]:
        """The newest update whose checkpoint is whole, and that; nothing before the first one."""
        if not updates:
            return None, None
        last, *before = updates
        try:
            return last, self.checkpoints.load(last.checkpoint, last.checkpoint_sha256)
        except CheckpointDamaged as damage:
            way_out = "restore it from a backup or start a new run"
            if self._fork() == last.checkpoint_sha256:
                raise CheckpointError(f"{damage}; fork from the run it came from again") from damage
            if not before and last.update_id != 1:
                raise CheckpointError(f"{damage}; {way_out}") from damage
            previous = None
            try:
                if before:
                    previous = self.checkpoints.load(
                        before[0].checkpoint, before[0].checkpoint_sha256
                    )
            except CheckpointDamaged as second:
                raise CheckpointError(f"{damage}; neither can {second}: {way_out}") from second
            log.error("%s; update %d is made again", damage, last.update_id)
            self.store.undo_last_update()
            self.checkpoints.keep_only(*(update.checkpoint for update in before))
            return (before[0] if before else None), previous

    @property
    def _parameters(self) -> dict[str, Tensor]:
        """Everything that is trained, by name."""
        critic = {} if self.critic is None else dict(self.critic.named_parameters(prefix="critic"))
        return {**self.policy.parameters, **critic}

    def _finish(self, update: UpdateRow) -> float:
        undone = self.store.undone_versions()
        manifest = until_taken(
            lambda: self.adapters.publish(
                update.update_id,
                self.policy.adapter_files(),
                parent=update.parent,
                task=self.identity.train_tasks[update.task_index],
                base_sha256=self.identity.base_sha256,
                method=self.identity.method,
                metrics=update.metrics,
                mend=True,
                replaces=undone,
            ),
            self.should_stop,
        )
        if manifest.version != update.version:
            raise CheckpointError(
                f"update {update.update_id} was committed as {update.version}, its checkpoint "
                f"makes {manifest.version}"
            )
        hold_s = 0.0
        if not update.activated:
            hold_s = self.link.activate(update.version).hold_s
            until_taken(lambda: self.store.mark_activated(update.update_id), self.should_stop)
        self.version = update.version
        return hold_s

    def _own_state(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """What the continual method remembers; nothing of what another one has left."""
        left_by = checkpoint.settings.get("continual", {}).get("method")
        is_own = left_by == self.identity.config.continual.method
        return checkpoint.continual if is_own else {}

    def _fork(self) -> str | None:
        """SHA-256 of the checkpoint from which a copied run may go on with other settings."""
        path = self.checkpoints.root.parent / FORK_FILE
        if not path.exists():
            return None
        try:
            named = read_json(
                path,
                {"checkpoint_sha256": str},
                "it names the checkpoint from which a copied run may go on: copy the run again, or "
                "delete the file to go on with the run's own settings",
            )
        except DamagedFile as error:
            raise CheckpointError(str(error)) from error
        return str(named["checkpoint_sha256"])

    def _check_settings(self, saved: dict[str, Any]) -> None:
        config = self.identity.config
        saved = _spelt_anew(saved)
        wanted, defaults = config.resume_settings(), schema_defaults(config, saved)
        differences = sorted(find_differences(saved, wanted, defaults), key=lambda d: d.key)
        refused = [difference for difference in differences if difference.kind != "gone"]
        if refused:
            first = f"{refused[0].key}={json.dumps(refused[0].recorded)}"
            raise CheckpointError(
                f"this run was {explain(refused)}; "
                f"use {first} to resume it, or another state_dir to start afresh"
            )
        for gone in differences:
            log.warning(
                "this run was begun with %s=%s, a setting that there is no more; going on without",
                gone.key,
                json.dumps(gone.recorded),
            )


def _spelt_anew(saved: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with their instructions as the same settings are read today.

    Earlier releases kept stray white space and a final full stop.
    """
    tasks = saved.get("suite", {}).get("tasks", [])
    if not tasks:
        return saved
    return {**saved, "suite": {**saved["suite"], "tasks": [*map(_task_spelt_anew, tasks)]}}


def _task_spelt_anew(task: dict[str, Any]) -> dict[str, Any]:
    recorded = task.get("instruction", "")
    try:
        cleaned = clean_instruction(recorded)
    except ValueError:
        return task  # no settings of today say this: the difference is refused
    if cleaned != recorded:
        log.warning(
            "this run was begun with the instruction %s of task %s; it goes on with %s",
            shown(recorded),
            shown(task.get("slug")),
            shown(cleaned),
        )
    return {**task, "instruction": cleaned}


def _load_critic(critic: Critic, tensors: Mapping[str, Tensor], version: str) -> None:
    """Only a run that goes on with settings of its own can have another kind of critic."""
    try:
        critic.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{version} was learned with another critic than the {type(critic).__name__} of this "
            f"run's settings: expected tensors like {next(iter(critic.state_dict()))}, got "
            f"{sorted(tensors)[:1] or 'none'}; go on from a run with the same critic"
        ) from error

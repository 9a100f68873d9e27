"""Acting ahead of learning within a bound: which version plays what, and what may be trained on.

In an asynchronous run of staleness s the episodes of a task's iteration i come from the version
that iteration i - s was to improve, or the one that the task began with. They are ordered as soon
as that version is there, so up to s iterations are ordered or played while the learner computes an
update, and acting waits for learning only if one update takes longer than playing s iterations. All
of an iteration, and so every group, has one version. Which one follows from the place alone and not
from the time: same seed, same numbers, killed or not. A task's last iteration leaves nothing
ordered, for the evaluation that follows needs the last version.
"""

from collections.abc import Sequence

import numpy as np

from agent.wire.errors import PerennialError
from learner.batch import Samples
from learner.checkpoint import Place
from learner.config import LearnerConfig
from learner.curriculum import is_finished, stage_at
from learner.groups import Collection, place_ahead
from learner.store import LearnerStore


class StaleSamples(PerennialError):
    """Samples of a version that is too old for the update, or was never to make them."""


def recent_versions(store: LearnerStore, place: Place, version: str, staleness: int) -> list[str]:
    """What an update at `place` may train on: `version`, which it improves, then ever older ones.

    They are the versions that this and the `staleness` iterations before it improved, as far back
    as the task goes.
    """
    back = range(min(staleness, place.iteration))
    return [version, *(store.parent_of(place.update_id - k) for k in back)]


def collections_ahead(
    config: LearnerConfig, place: Place, versions: Sequence[str]
) -> list[Collection]:
    """Those of the iteration at `place` and of all that can be ordered by now, the next first.

    Args:
        versions: `recent_versions` there.
    """
    staleness, stage = config.algorithm.staleness, stage_at(config, place.task_index)
    collections = []
    for ahead in range(staleness + 1):
        there = place_ahead(config, place, ahead)
        if ahead == 0 or not is_finished(config, stage, there):
            version = versions[min(staleness - ahead, place.iteration)]
            collections.append(Collection(config, there, version))
    return collections


def ages(samples: Samples, versions: Sequence[str]) -> np.ndarray:
    """How many updates old the version of each sample is, i64[B].

    Raises:
        StaleSamples: one is not among `versions`.
    """
    age_of = {version: age for age, version in enumerate(versions)}
    for row, version in enumerate(samples.version_B):
        if version not in age_of:
            raise StaleSamples(
                f"episode {samples.episode_id_B[row]}, step {samples.step_index_B[row]}: made by "
                f"{version}, this update trains on episodes of {', '.join(versions)} alone. "
                "Nothing was trained; is another learner ordering episodes from this agent?"
            )
    return np.array([age_of[version] for version in samples.version_B], dtype=np.int64)

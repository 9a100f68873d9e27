"""Which classes the settings ask for: the method of learning, its critic, the continual method."""

from collections.abc import Callable
from dataclasses import dataclass

from learner.config import LearnerConfig
from learner.continual.dwe import Dwe
from learner.continual.ewc import Ewc
from learner.continual.method import ContinualMethod
from learner.continual.past import Past
from learner.continual.replay import Der, Er
from learner.continual.retain import Retain
from learner.continual.slca import Slca
from learner.critic import ValueHead
from learner.dpo import DpoTeacher
from learner.grpo import GrpoTeacher
from learner.link import AgentLink
from learner.loop import Teacher
from learner.policy import LoraPolicy
from learner.ppo import PpoTeacher
from learner.receiver import Inbox
from learner.sft import SftTeacher


@dataclass(frozen=True)
class Parts:
    """What learns; `critic` is None for a method without one."""

    teacher: Teacher
    critic: ValueHead | None
    continual: ContinualMethod


def assemble(
    config: LearnerConfig,
    policy: LoraPolicy,
    inbox: Inbox,
    link: AgentLink,
    should_stop: Callable[[], bool],
) -> Parts:
    """The parts that `config.algorithm` and `config.continual` name."""
    continual = _continual(config, policy, inbox)
    critic = _critic(config, policy)
    if config.algorithm.method == "sft":
        return Parts(SftTeacher(config, policy, should_stop, continual), critic, continual)
    if critic is not None:
        ppo = PpoTeacher(config, policy, critic, inbox, link, should_stop, continual)
        return Parts(ppo, critic, continual)
    if config.algorithm.dpo is not None:
        dpo = DpoTeacher(config, policy, inbox, link, should_stop, continual)
        return Parts(dpo, critic, continual)
    grpo = GrpoTeacher(config, policy, inbox, link, should_stop, continual)
    return Parts(grpo, critic, continual)


def _continual(config: LearnerConfig, policy: LoraPolicy, inbox: Inbox) -> ContinualMethod:
    settings = config.continual
    past = Past(inbox.store, inbox.folder, config.cameras)
    if settings.ewc is not None:
        return Ewc(settings.ewc, policy, past, config.seed)
    if settings.retain is not None:
        return Retain(settings.retain, policy, config.seed)
    if settings.slca is not None:
        return Slca(settings.slca)
    if settings.er is not None:
        return Er(config, settings.er, policy, past)
    if settings.der is not None:
        return Der(config, settings.der, policy, past)
    if settings.method == "dwe":
        return Dwe(policy)
    return ContinualMethod()


def _critic(config: LearnerConfig, policy: LoraPolicy) -> ValueHead | None:
    if config.algorithm.ppo is None:
        return None
    state_size = policy.network.config.llama_config().hidden_size
    head = ValueHead(state_size, config.algorithm.ppo.hidden_sizes, config.seed)
    return head.to(policy.device)

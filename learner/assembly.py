"""Which classes the settings ask for: the method of learning, its critic, the continual method."""

from collections.abc import Callable
from dataclasses import dataclass

from learner.config import LearnerConfig
from learner.continual.crl_vla import CrlVla
from learner.continual.dwe import Dwe
from learner.continual.ewc import Ewc
from learner.continual.method import ContinualMethod
from learner.continual.past import Past
from learner.continual.replay import Der, Er
from learner.continual.retain import Retain
from learner.continual.slca import Slca
from learner.critic import Critic, ValueHead
from learner.dpo import DpoTeacher
from learner.dual_critic import DualCritic
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
    critic: Critic | None
    continual: ContinualMethod


def assemble(
    config: LearnerConfig,
    policy: LoraPolicy,
    inbox: Inbox,
    link: AgentLink,
    should_stop: Callable[[], bool],
) -> Parts:
    """The parts that `config.algorithm` and `config.continual` name."""
    critic = _critic(config, policy)
    past = Past(inbox.store, inbox.folder, config.cameras, should_stop)
    continual = _continual(config, policy, critic, past)
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


def _continual(
    config: LearnerConfig, policy: LoraPolicy, critic: Critic | None, past: Past
) -> ContinualMethod:
    settings = config.continual
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
    if settings.crl_vla is not None:
        assert isinstance(critic, DualCritic), "as _critic makes it"
        return CrlVla(config, settings.crl_vla, policy, critic, past)
    if settings.method == "dwe":
        return Dwe(policy)
    return ContinualMethod()


def _critic(config: LearnerConfig, policy: LoraPolicy) -> Critic | None:
    ppo, crl_vla = config.algorithm.ppo, config.continual.crl_vla
    if ppo is None:
        return None
    if crl_vla is not None:
        reads_actions = crl_vla.critic == "q"
        dual = DualCritic(policy, ppo.hidden_sizes, config.seed, reads_actions, crl_vla.draws)
        return dual.to(policy.device)
    state_size = policy.network.config.llama_config().hidden_size
    return ValueHead(state_size, ppo.hidden_sizes, config.seed).to(policy.device)

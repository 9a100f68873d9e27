"""What is ordered from the agent: only what is missing here, whatever the agent still knows."""

from collections.abc import Callable, Sequence

from agent.wire.messages import Order
from learner.link import AgentLink
from learner.patience import until_taken
from learner.receiver import Inbox
from learner.store import EpisodeRow


def collect_orders(
    link: AgentLink,
    inbox: Inbox,
    orders: Sequence[Order],
    should_stop: Callable[[], bool],
    ahead: Sequence[Order] = (),
) -> dict[str, EpisodeRow]:
    """Have orders carried out; returns the counted episodes by slot id, as `Inbox.wait_for`.

    An agent that was started anew may have lost its ledger: it is told again.

    Args:
        ahead: orders that are posted, too, and not waited for.
    """

    def post() -> None:
        tell_rejections(link, inbox)
        tell_activation(link, inbox)
        post_missing(link, inbox, [*orders, *ahead])

    restarts = inbox.restarts  # a restart while orders are posted may have lost them
    post()
    return inbox.wait_for(orders, should_stop, on_restart=post, restarts=restarts)


def post_missing(link: AgentLink, inbox: Inbox, orders: Sequence[Order]) -> None:
    """Post the orders of which an episode is missing, and say which of their slots need none."""
    ids = [order.order_id for order in orders]
    rows, refused = inbox.store.counted_episodes(ids), inbox.store.refused_orders(ids)
    missing = [
        order
        for order in orders
        if order.order_id not in refused
        and any(f"{order.order_id}#{k}" not in rows for k in range(order.slots))
    ]
    wanted = {order.order_id for order in missing}
    held = {slot: row.episode_id for slot, row in rows.items() if row.order_id in wanted}
    if held:
        link.post_orders(missing, held)
    elif missing:
        link.post_orders(missing)


def tell_rejections(link: AgentLink, inbox: Inbox) -> None:
    """Have the slots of rejected episodes run again, also of those a former process rejected."""
    rejected = inbox.store.rejected()
    if rejected:
        link.reject(rejected)
        until_taken(lambda: inbox.store.forget_rejected(rejected), inbox.should_stop)


def tell_activation(link: AgentLink, inbox: Inbox) -> None:
    """Have the newest version activated once more where the agent has forgotten that it was."""
    last = inbox.store.last_update()
    if last is not None and not last.activated:
        link.activate(last.version)
        until_taken(lambda: inbox.store.mark_activated(last.update_id), inbox.should_stop)

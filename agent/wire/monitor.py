"""What libzmq tells of a socket's connections."""

from __future__ import annotations

import itertools

import zmq

_numbers = itertools.count()  # an address is free again only some time after its socket is closed


def monitor(watched: zmq.Socket[bytes], kinds: int) -> zmq.Socket[bytes]:
    """A socket that receives the events of `kinds` of the one that is watched.

    It must be made before the watched one is bound or connected; the caller closes it.
    """
    address = f"inproc://monitor-{next(_numbers)}"
    watched.monitor(address, kinds)
    events = watched.context.socket(zmq.PAIR)
    events.setsockopt(zmq.RCVHWM, 0)  # libzmq's thread must never wait for the caller's
    events.setsockopt(zmq.LINGER, 0)
    events.connect(address)
    return events

"""A robot on ROS 2 topics: pictures and joints come in, commands go out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from agent.wire.errors import ConfigError
from agent.wire.messages import Outcome
from sim_bridge.robot import BridgeError, Observation
from sim_bridge.robots import cdr
from sim_bridge.robots.config import RestConfig, Ros2Config, Ros2Topic
from sim_bridge.robots.pictures import fit_picture
from sim_bridge.robots.rest import Person, check_rest, move_home
from sim_bridge.robots.ros2_messages import command_of, numbers_of, picture_of, size_of
from sim_bridge.robots.ros2_transports import OnPayload, Transport

UNKNOWN = np.full(3, np.nan)
LOOK_S = 0.02  # how often it is looked for first messages


class Stale(BridgeError):
    """A topic has fallen silent."""


class Ros2Robot:
    """Keeps each topic's last message with the time of its coming. It sees no episode's end."""

    def __init__(
        self,
        transport: Transport,
        config: Ros2Config,
        rest: RestConfig,
        image_size: int,
        should_stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Takes over `transport`. Raises ConfigError for settings that do not fit together."""
        _check(config, rest)
        self._transport, self._config, self._rest = transport, config, rest
        self._image_size, self._should_stop = image_size, should_stop
        self._clock, self._sleep = clock, sleep
        self._person = None if rest.home else Person()
        self._last: dict[str, tuple[bytes, float] | None] = {}  # topic -> payload, when it came
        sources = [*config.cameras.values(), *config.proprio]
        for source in [*sources, config.position] if config.position.topic else sources:
            if source.topic not in self._last:
                self._last[source.topic] = None
                transport.subscribe(source.topic, source.type, self._keeper(source.topic))
        self._publish = [transport.advertise(each.topic, each.type) for each in config.commands]

    def reset(self, task: str, split: str, init_state: int) -> None:
        """Moves home from where it is, or waits for the person; then for every topic.

        Raises Stale when one stays silent.
        """
        if self._person is not None:
            self._person.reset(task, self._should_stop)
            self._wait_for_messages()
            return
        self._wait_for_messages()
        home_A = np.array(self._rest.home)
        present_A = self._proprio()[: len(home_A)]
        move_home(present_A, home_A, self._rest.home_s, self._send, self._should_stop, self._sleep)

    def observe(self) -> Observation:
        """The last message of every topic. Raises Stale, BadMessage, BridgeError."""
        images = {
            camera: fit_picture(camera, picture_of(source, self._fresh(source)), self._image_size)
            for camera, source in self._config.cameras.items()
        }
        return Observation(images, self._proprio().astype(np.float32))

    def position(self) -> np.ndarray:
        """Of the topic with the grasp point's pose, if there is one."""
        source = self._config.position
        return numbers_of(source, self._fresh(source))[:3] if source.topic else UNKNOWN

    def apply(self, action_A: np.ndarray) -> None:
        """Publishes, each command its share. Raises Stale: what is not seen is not moved."""
        self._require_fresh()
        self._send(action_A)

    def hold(self) -> None:
        """Publishes the hold action, if there is one; without it, goals of position stay."""
        if self._rest.hold_action:
            self._send(np.array(self._rest.hold_action, np.float32))

    def outcome(self) -> Outcome | None:
        """Never: that is for the operator or a detector to say."""
        return None

    def close(self) -> None:
        """Holds and leaves the graph."""
        try:
            self.hold()
        finally:
            self._transport.close()

    def _keeper(self, topic: str) -> OnPayload:
        def keep(payload: bytes) -> None:
            self._last[topic] = (payload, self._clock())

        return keep

    def _fresh(self, source: Ros2Topic) -> dict[str, Any]:
        return cdr.decode(source.type, self._payload(source.topic))

    def _payload(self, topic: str) -> bytes:
        last = self._last[topic]
        age_s = np.inf if last is None else self._clock() - last[1]
        if last is None or age_s > self._config.stale_s:
            raise Stale(
                f"ros2: {topic}: last message {age_s:.2f} s ago, stale_s is "
                f"{self._config.stale_s:g}"
            )
        return last[0]

    def _require_fresh(self) -> None:
        for topic in self._last:
            self._payload(topic)

    def _wait_for_messages(self) -> None:
        deadline_s = self._clock() + self._config.first_s
        while not self._should_stop():
            try:
                return self._require_fresh()
            except Stale:
                if self._clock() > deadline_s:
                    raise
            self._sleep(LOOK_S)

    def _proprio(self) -> np.ndarray:
        parts = [numbers_of(source, self._fresh(source)) for source in self._config.proprio]
        return np.concatenate(parts)

    def _send(self, action_A: np.ndarray) -> None:
        sizes = [size_of(each) for each in self._config.commands]
        if action_A.shape != (sum(sizes),):
            raise BridgeError(
                f"ros2.commands: they take {sizes} numbers, and the policy's actions have "
                f"{action_A.shape}"
            )
        shares = np.split(action_A.astype(np.float64), np.cumsum(sizes)[:-1])
        for command, publish, share in zip(
            self._config.commands, self._publish, shares, strict=True
        ):
            publish(cdr.encode(command.type, command_of(command, share)))


def _check(config: Ros2Config, rest: RestConfig) -> None:
    if not config.cameras or not config.proprio or not config.commands:
        raise ConfigError("ros2: cameras, proprio and commands must be set")
    numbers = (cdr.JOINT_STATE, cdr.FLOATS, cdr.POSE, cdr.TWIST)
    allowed = [
        *[
            (f"cameras.{k}", v, (cdr.IMAGE, cdr.COMPRESSED_IMAGE))
            for k, v in config.cameras.items()
        ],
        *[(f"proprio[{k}]", each, numbers) for k, each in enumerate(config.proprio)],
        *[(f"commands[{k}]", each, numbers) for k, each in enumerate(config.commands)],
        *([("position", config.position, (cdr.POSE,))] if config.position.topic else []),
    ]
    for name, each, kinds in allowed:
        if not each.topic or each.type not in kinds:
            raise ConfigError(
                f"ros2.{name}: expected a topic of type {', '.join(kinds)}, got '{each.topic}' of "
                f"'{each.type}'"
            )
        if each.type in numbers and size_of(each) < 1:
            key = "names" if each.type == cdr.JOINT_STATE else "size"
            raise ConfigError(f"ros2.{name}.{key}: must be set for a {each.type}")
    action_dim = sum(size_of(each) for each in config.commands)
    check_rest(rest, action_dim)
    if rest.home and sum(size_of(each) for each in config.proprio) < action_dim:
        raise ConfigError("rest.home: proprio must begin with where the commanded joints are")
    if any(each.type == cdr.TWIST for each in config.commands) and not rest.hold_action:
        raise ConfigError("rest.hold_action: must be set for a TwistStamped, or it would move on")

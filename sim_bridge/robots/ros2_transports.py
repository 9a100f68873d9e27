"""Three ways onto a ROS 2 graph; each carries messages as their CDR bytes and knows nothing else.

What arrives is handed over from a thread of the transport's own.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable
from typing import Any, Protocol

from agent.process.optional import PackageError, needing
from agent.wire.errors import ConfigError
from sim_bridge.robots.cdr import MESSAGES, NUMBERS
from sim_bridge.robots.config import Ros2Config

OnPayload = Callable[[bytes], None]
CLOSE_LIMIT_S = 5.0
# In the order of preference: the package that each needs, and how it is had.
PACKAGES = {
    "rclpy": ("rclpy", "source your ROS 2 installation, e.g. . /opt/ros/jazzy/setup.sh"),
    "dds": ("cyclonedds", "pip install 'perennial-vla[ros2]'"),
    "zenoh": ("zenoh", "pip install 'perennial-vla[ros2]'"),
}


class Transport(Protocol):
    """Topics by their ROS names, e.g. /joint_states; types as in MESSAGES."""

    def subscribe(self, topic: str, kind: str, on_payload: OnPayload) -> None:
        """Calls `on_payload` with every message; older ones may be left out."""

    def advertise(self, topic: str, kind: str) -> OnPayload:
        """A function that publishes and does not wait for anyone to read."""

    def close(self) -> None:
        """Ends the thread; called once."""


def make_transport(config: Ros2Config) -> Transport:
    """The one that is named; `auto` is the first that is installed and works.

    Raises ConfigError.
    """
    found = [name for name, (package, _) in PACKAGES.items() if importlib.util.find_spec(package)]
    wanted = config.transport
    if wanted == "auto":
        if not found:
            raise ConfigError(f"ros2.transport: none is installed; {PACKAGES['dds'][1]}")
        wanted = _first_that_works(found)
    elif wanted not in found:
        package, way_out = PACKAGES[wanted]
        raise ConfigError(f"ros2.transport: '{wanted}' needs {package}: {way_out}")
    else:
        _import(wanted)
    if wanted == "rclpy":
        return RclpyTransport(config.domain)
    if wanted == "dds":
        return DdsTransport(config.domain)
    return ZenohTransport(config.zenoh_endpoints)


def _first_that_works(names: list[str]) -> str:
    failures = []
    for name in names:
        try:
            _import(name)
        except PackageError as error:
            failures.append(str(error))
        else:
            return name
    raise ConfigError("; ".join(failures))


def _import(name: str) -> None:
    """Raises PackageError if the package of a transport is broken."""
    package, way_out = PACKAGES[name]
    try:
        with needing("ros2", way_out):
            importlib.import_module(package)
    except PackageError as error:
        raise PackageError(f"ros2.transport: '{name}': {error}") from error


class RclpyTransport:
    """A node of its own, with serialized messages."""

    def __init__(self, domain: int) -> None:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor

        self._rclpy = rclpy
        self._context = Context()  # of its own: the default one would take over SIGTERM and SIGINT
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("perennial_robot", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, name="ros2", daemon=True)
        self._thread.start()

    def subscribe(self, topic: str, kind: str, on_payload: OnPayload) -> None:
        """Best effort, the latest only: what a camera's driver offers, and no queue of old ones."""
        from rclpy.qos import qos_profile_sensor_data
        from rosidl_runtime_py.utilities import get_message

        self._node.create_subscription(
            get_message(kind), topic, on_payload, qos_profile_sensor_data, raw=True
        )

    def advertise(self, topic: str, kind: str) -> OnPayload:
        """Reliable, the latest only."""
        from rosidl_runtime_py.utilities import get_message

        publish: OnPayload = self._node.create_publisher(get_message(kind), topic, 1).publish
        return publish

    def close(self) -> None:
        """Ends the executor, the node and the context."""
        self._executor.shutdown(CLOSE_LIMIT_S)
        self._thread.join(CLOSE_LIMIT_S)
        self._node.destroy_node()
        self._rclpy.shutdown(context=self._context)


class DdsTransport:
    """DDS as ROS 2 uses it: topic "rt/<name>", types "<package>::msg::dds_::<Name>_".

    CYCLONEDDS_URI chooses interfaces and peers, as for ROS 2 itself.
    """

    def __init__(self, domain: int) -> None:
        from cyclonedds.core import GuardCondition, WaitSet
        from cyclonedds.domain import DomainParticipant

        self._participant = DomainParticipant(domain)
        self._types: dict[str, Any] = {}  # IDL, by the ROS name
        self._readers: list[tuple[Any, OnPayload]] = []
        self._wake = GuardCondition(self._participant)
        self._waitset = WaitSet(self._participant)
        self._waitset.attach(self._wake)
        self._lock = threading.Lock()  # of the readers
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="dds", daemon=True)
        self._thread.start()

    def subscribe(self, topic: str, kind: str, on_payload: OnPayload) -> None:
        """Best effort, the latest only: what a camera's driver offers, and no queue of old ones."""
        from cyclonedds.core import InstanceState, ReadCondition, SampleState, ViewState
        from cyclonedds.qos import Policy, Qos
        from cyclonedds.sub import DataReader

        qos = Qos(Policy.Reliability.BestEffort, Policy.History.KeepLast(1))
        reader = DataReader(self._participant, self._topic(topic, kind), qos)
        fresh = ReadCondition(reader, SampleState.NotRead | ViewState.Any | InstanceState.Any)
        with self._lock:
            self._readers.append((reader, on_payload))
            self._waitset.attach(fresh)

    def advertise(self, topic: str, kind: str) -> OnPayload:
        """Reliable, the latest only."""
        from cyclonedds.pub import DataWriter
        from cyclonedds.qos import Policy, Qos

        qos = Qos(
            Policy.Reliability.Reliable(0),
            Policy.History.KeepLast(1),
            Policy.DataRepresentation(use_cdrv0_representation=True),
        )
        writer = DataWriter(self._participant, self._topic(topic, kind), qos)
        return lambda payload: writer.write(_dds_type(kind, self._types)(payload))

    def close(self) -> None:
        """Ends the thread; the participant goes with the last reference to it."""
        self._closing = True
        self._wake.set(True)
        self._thread.join(CLOSE_LIMIT_S)

    def _read(self) -> None:
        from cyclonedds.util import duration

        while not self._closing:
            self._waitset.wait(duration(seconds=1))
            with self._lock:
                readers = list(self._readers)
            for reader, on_payload in readers:
                for sample in reader.take(1):
                    if sample.sample_info.valid_data:
                        on_payload(sample.payload)

    def _topic(self, topic: str, kind: str) -> Any:
        from cyclonedds.topic import Topic

        return Topic(self._participant, "rt/" + topic.strip("/"), _dds_type(kind, self._types))


class ZenohTransport:
    """Zenoh as zenoh-bridge-ros2dds uses it: a topic's key is its name without the first slash."""

    def __init__(self, endpoints: list[str]) -> None:
        """endpoints: of routers or bridges, e.g. tcp/127.0.0.1:7447; none: found by multicast."""
        import zenoh

        settings = zenoh.Config()
        if endpoints:
            settings.insert_json5("connect/endpoints", json.dumps(endpoints))
            settings.insert_json5("scouting/multicast/enabled", "false")
        self._session = zenoh.open(settings)

    def subscribe(self, topic: str, kind: str, on_payload: OnPayload) -> None:
        """Every message, as it comes."""
        self._session.declare_subscriber(
            topic.strip("/"), lambda sample: on_payload(sample.payload.to_bytes())
        )

    def advertise(self, topic: str, kind: str) -> OnPayload:
        """What cannot be sent at once is dropped: the next command is better."""
        import zenoh

        publisher = self._session.declare_publisher(
            topic.strip("/"), congestion_control=zenoh.CongestionControl.DROP
        )
        publish: OnPayload = publisher.put
        return publish

    def close(self) -> None:
        """Closes the session and what was declared on it."""
        self._session.close()


def _dds_type(kind: str, made: dict[str, Any]) -> Any:
    """The IDL type of a message, or of a field's; its declaration is announced to other nodes."""
    from cyclonedds.idl import make_idl_struct, types

    if kind.endswith("[]"):
        sequence: Any = types.sequence
        return sequence[_dds_type(kind.removesuffix("[]"), made)]
    if kind in NUMBERS:
        return getattr(types, kind)
    if kind == "string":
        return str
    if kind not in made:
        package, _, name = kind.partition("/msg/")
        fields = {field: _dds_type(each, made) for field, each in MESSAGES[kind].items()}
        struct: Any = make_idl_struct(
            name, f"{package}.msg.dds_.{name}_", fields, dataclassify=False
        )
        # Set here because a base class would be declared as a part of the message.
        struct.__init__ = _keep
        struct.serialize = _its_payload
        struct.deserialize = classmethod(_from_payload)
        made[kind] = struct
    return made[kind]


# A sample is its own bytes: what is in a picture is looked at when it is wanted.
def _keep(self: Any, payload: bytes) -> None:
    self.payload = payload


def _its_payload(self: Any, *_: Any, **__: Any) -> bytes:
    payload: bytes = self.payload
    return payload


def _from_payload(cls: Any, data: bytes, *_: Any, **__: Any) -> Any:
    return cls(bytes(data))

"""A simulated arm on ROS 2 topics, by cyclonedds' own types and CDR: python ros2_arm.py dds 87

It publishes its joints and a picture of them, and takes every command as the next joints.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cyclonedds.core import Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float64, int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

JOINTS = [f"joint{k}" for k in range(7)]
IMAGE_TOPIC, JOINTS_TOPIC, COMMAND_TOPIC = "camera/image_raw", "joint_states", "arm/commands"
PERIOD_S = 0.02
HANG_S = 600.0  # it runs as a program too, without the folder of the tests' own limit
# Neither multicast nor any other machine; as many participants as there are processes.
LOOPBACK = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface address='127.0.0.1'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast></General><Discovery><Peers><Peer Address='127.0.0.1'/>"
    "</Peers><ParticipantIndex>auto</ParticipantIndex></Discovery></Domain></CycloneDDS>"
)


@dataclass
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    sec: int32 = 0
    nanosec: uint32 = 0


@dataclass
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    stamp: Time = field(default_factory=Time)
    frame_id: str = "arm"


@dataclass
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class JointState(IdlStruct, typename="sensor_msgs.msg.dds_.JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
class MultiArrayDimension(IdlStruct, typename="std_msgs.msg.dds_.MultiArrayDimension_"):
    label: str
    size: uint32
    stride: uint32


@dataclass
class MultiArrayLayout(IdlStruct, typename="std_msgs.msg.dds_.MultiArrayLayout_"):
    dim: sequence[MultiArrayDimension]
    data_offset: uint32


@dataclass
class Float64MultiArray(IdlStruct, typename="std_msgs.msg.dds_.Float64MultiArray_"):
    layout: MultiArrayLayout
    data: sequence[float64]


class Arm:
    """The joints, and what can be seen of them: the first one's value is the picture's red."""

    def __init__(self) -> None:
        self.joints_A = [0.5] * len(JOINTS)

    def joint_state(self) -> JointState:
        """Last joint first: ROS promises no order."""
        return JointState(Header(), JOINTS[::-1], self.joints_A[::-1], [], [])

    def image(self, height: int = 30, width: int = 40) -> Image:
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, :, 0] = np.clip(100 * self.joints_A[0], 0, 255)
        return Image(Header(), height, width, "rgb8", 0, 3 * width, pixels.ravel().tolist())

    def take(self, command: Float64MultiArray) -> None:
        self.joints_A = list(command.data)


@contextmanager
def on_dds(arm: Arm, domain: int) -> Iterator[Callable[[], None]]:
    """Gives a function that publishes once and takes what has come."""
    participant = DomainParticipant(domain)
    reliable = Qos(Policy.Reliability.Reliable(0), Policy.History.KeepLast(1))

    def topic(name: str, kind: Any) -> Any:
        return Topic(participant, f"rt/{name}", kind)

    images = DataWriter(participant, topic(IMAGE_TOPIC, Image), reliable)
    joints = DataWriter(participant, topic(JOINTS_TOPIC, JointState), reliable)
    commands = DataReader(participant, topic(COMMAND_TOPIC, Float64MultiArray), reliable)

    def turn() -> None:
        for command in commands.take(10):
            arm.take(command)
        images.write(arm.image())
        joints.write(arm.joint_state())

    yield turn


@contextmanager
def on_zenoh(arm: Arm, endpoint: str) -> Iterator[Callable[[], None]]:
    """The same over zenoh, listening at `endpoint`."""
    import zenoh

    settings = zenoh.Config()
    settings.insert_json5("listen/endpoints", f'["{endpoint}"]')
    settings.insert_json5("scouting/multicast/enabled", "false")
    with zenoh.open(settings) as session:
        session.declare_subscriber(
            COMMAND_TOPIC,
            lambda sample: arm.take(Float64MultiArray.deserialize(sample.payload.to_bytes())),
        )

        def turn() -> None:
            session.put(IMAGE_TOPIC, arm.image().serialize())
            session.put(JOINTS_TOPIC, arm.joint_state().serialize())

        yield turn


@contextmanager
def running_arm(transport: str, where: str) -> Iterator[tuple[Arm, threading.Event]]:
    """An arm that plays in a thread; while the event is set it is silent."""
    arm, silent, over = Arm(), threading.Event(), threading.Event()

    def play() -> None:
        peer = on_dds(arm, int(where)) if transport == "dds" else on_zenoh(arm, where)
        with peer as turn:
            while not over.wait(PERIOD_S):
                if not silent.is_set():
                    turn()

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield arm, silent
    finally:
        over.set()
        thread.join(HANG_S)


if __name__ == "__main__":
    with running_arm(sys.argv[1], sys.argv[2]):
        threading.Event().wait(HANG_S)

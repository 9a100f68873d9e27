"""What a robot on ROS 2 topics sees and does, on a graph in memory."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.wire.errors import ConfigError
from sim_bridge.robot import BridgeError
from sim_bridge.robots import cdr
from sim_bridge.robots.config import RestConfig, Ros2Config, Ros2Topic
from sim_bridge.robots.ros2 import Ros2Robot, Stale
from sim_bridge.robots.ros2_transports import OnPayload

CAMERA = Ros2Topic("/camera", cdr.IMAGE)
JOINTS = Ros2Topic("/joints", cdr.JOINT_STATE, ["a", "b"])
CONFIG = Ros2Config(
    cameras={"agentview": CAMERA},
    proprio=[JOINTS, Ros2Topic("/gripper", cdr.FLOATS, size=1)],
    commands=[
        Ros2Topic("/arm", cdr.JOINT_STATE, ["a", "b"]),
        Ros2Topic("/hand", cdr.FLOATS, size=1),
    ],
    stale_s=0.5,
)
REST = RestConfig([1.0, 2.0, 3.0], home_s=0.2)
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


class Graph:
    """A transport that is also the other nodes, and their clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.readers: dict[str, OnPayload] = {}
        self.published: dict[str, list[bytes]] = defaultdict(list)
        self.closed = False

    def subscribe(self, topic: str, kind: str, on_payload: OnPayload) -> None:
        assert topic not in self.readers, "twice"
        self.readers[topic] = on_payload

    def advertise(self, topic: str, kind: str) -> OnPayload:
        return self.published[topic].append

    def close(self) -> None:
        self.closed = True

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def send(self, topic: str, kind: str, message: dict[str, Any]) -> None:
        self.readers[topic](cdr.encode(kind, message))

    def send_all(self) -> None:
        self.send("/camera", cdr.IMAGE, picture("rgb8", PICTURE))
        self.send("/joints", cdr.JOINT_STATE, {"name": ["b", "a"], "position": [20.0, 10.0]})
        self.send("/gripper", cdr.FLOATS, {"data": [30.0]})

    def sent(self, topic: str, kind: str) -> list[dict[str, Any]]:
        return [cdr.decode(kind, payload) for payload in self.published[topic]]


def picture(encoding: str, pixels: np.ndarray, padding: int = 0) -> dict[str, Any]:
    height, width, channels = pixels.shape
    rows = np.hstack([pixels.reshape(height, -1), np.zeros((height, padding), np.uint8)])
    return {
        "height": height, "width": width, "encoding": encoding,
        "step": width * channels + padding, "data": rows.ravel(),
    }  # fmt: skip


def robot_on(graph: Graph, config: Ros2Config = CONFIG, rest: RestConfig = REST) -> Ros2Robot:
    return Ros2Robot(graph, config, rest, 2, lambda: False, lambda: graph.now_s, graph.sleep)


def test_observations_join_the_last_messages_by_the_settings_order() -> None:
    graph = Graph()
    robot = robot_on(graph)
    graph.send_all()
    graph.send("/gripper", cdr.FLOATS, {"data": [31.0]})
    assert robot.observe().proprio.tolist() == [10.0, 20.0, 31.0]
    assert np.isnan(robot.position()).all()


def test_a_topic_that_falls_silent_stops_seeing_and_moving() -> None:
    graph = Graph()
    robot = robot_on(graph)
    with pytest.raises(Stale, match="inf s ago"):
        robot.observe()
    graph.send_all()
    graph.now_s = 0.4
    graph.send("/camera", cdr.IMAGE, picture("rgb8", PICTURE))
    graph.send("/gripper", cdr.FLOATS, {"data": [31.0]})
    robot.observe()
    robot.apply(np.zeros(3, np.float32))
    graph.now_s = 0.6
    with pytest.raises(Stale, match=r"/joints: last message 0.60 s ago, stale_s is 0.5"):
        robot.observe()
    with pytest.raises(Stale, match="/joints"):
        robot.apply(np.zeros(3, np.float32))
    assert len(graph.published["/arm"]) == 1


def test_a_reset_waits_for_every_topic_and_no_longer_than_it_may() -> None:
    graph = Graph()
    robot = robot_on(graph)
    with pytest.raises(Stale):
        robot.reset("reach", "", 0)
    assert graph.now_s == pytest.approx(CONFIG.first_s, abs=0.1)
    graph.send_all()
    robot.reset("reach", "", 0)
    told = [message["position"].tolist() for message in graph.sent("/arm", cdr.JOINT_STATE)]
    np.testing.assert_allclose(told, [[7.75, 15.5], [5.5, 11.0], [3.25, 6.5], [1.0, 2.0]])


def test_each_command_takes_its_share_of_the_action() -> None:
    graph = Graph()
    robot = robot_on(graph)
    graph.send_all()
    robot.apply(np.array([0.5, 0.25, 4.0], np.float32))
    (arm,), (hand,) = graph.sent("/arm", cdr.JOINT_STATE), graph.sent("/hand", cdr.FLOATS)
    assert (arm["name"], arm["position"].tolist()) == (["a", "b"], [0.5, 0.25])
    assert arm["header"]["stamp"]["sec"] > 0
    assert hand["data"].tolist() == [4.0]
    with pytest.raises(BridgeError, match=r"take \[2, 1\] numbers"):
        robot.apply(np.zeros(7, np.float32))


def test_a_velocity_is_stamped_framed_and_stopped_by_holding_and_closing() -> None:
    graph = Graph()
    twist = Ros2Topic("/servo", cdr.TWIST, frame="tool0")
    robot = robot_on(
        graph, replace(CONFIG, commands=[twist], proprio=[Ros2Topic("/pose", cdr.POSE)]),
        RestConfig([0.0] * 6, hold_action=[0.0] * 6),
    )  # fmt: skip
    graph.send("/camera", cdr.IMAGE, picture("rgb8", PICTURE))
    graph.send("/pose", cdr.POSE, {"pose": {"position": {"x": 7.0}, "orientation": {"w": 1.0}}})
    assert robot.observe().proprio.tolist() == [7, 0, 0, 0, 0, 0, 1]
    robot.apply(np.arange(6, dtype=np.float32))
    robot.hold()
    robot.close()
    moved, held, closed = graph.sent("/servo", cdr.TWIST)
    assert moved["header"]["frame_id"] == "tool0"
    assert moved["twist"]["angular"] == {"x": 3.0, "y": 4.0, "z": 5.0}
    assert held["twist"]["linear"] == closed["twist"]["linear"] == {"x": 0.0, "y": 0.0, "z": 0.0}
    assert graph.closed


def test_the_grasp_point_is_read_from_its_pose() -> None:
    graph = Graph()
    robot = robot_on(graph, replace(CONFIG, position=Ros2Topic("/tool", cdr.POSE)))
    graph.send("/tool", cdr.POSE, {"pose": {"position": {"x": 0.1, "y": 0.2, "z": 0.3}}})
    assert robot.position().tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_every_colour_encoding_gives_the_same_picture(encoding: str) -> None:
    pixels = PICTURE[:, :2]
    sent = pixels[:, :, ::-1] if encoding.startswith("bgr") else pixels
    if encoding.endswith("a8"):
        sent = np.dstack([sent, np.full((2, 2), 255, np.uint8)])
    graph = Graph()
    robot = robot_on(graph)
    graph.send_all()
    graph.send("/camera", cdr.IMAGE, picture(encoding, sent, padding=5))
    np.testing.assert_array_equal(robot.observe().images["agentview"], pixels)


def test_a_jpeg_is_decoded_and_anything_else_refused() -> None:
    from PIL import Image

    jpeg = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 10, 30)).save(jpeg, "JPEG", quality=95)
    graph = Graph()
    compressed = Ros2Topic("/camera", cdr.COMPRESSED_IMAGE)
    robot = robot_on(graph, replace(CONFIG, cameras={"agentview": compressed}))
    graph.send_all()
    data = np.frombuffer(jpeg.getvalue(), np.uint8)
    graph.send("/camera", cdr.COMPRESSED_IMAGE, {"format": "jpeg", "data": data})
    np.testing.assert_allclose(robot.observe().images["agentview"][0, 0], [200, 10, 30], atol=3)
    graph.send("/camera", cdr.COMPRESSED_IMAGE, {"format": "png", "data": data[10:]})
    with pytest.raises(BridgeError, match="expected a JPEG, got format 'png'"):
        robot.observe()


@pytest.mark.parametrize(
    ("topic", "kind", "message", "expected"),
    [
        ("/camera", cdr.IMAGE, picture("mono8", PICTURE), "got 'mono8' 3x2 in 18 bytes"),
        ("/camera", cdr.IMAGE, {**picture("rgb8", PICTURE), "height": 9}, "got 'rgb8' 3x9"),
        ("/camera", cdr.IMAGE, {**picture("rgb8", PICTURE), "width": 9}, "got 'rgb8' 9x2"),
        ("/camera", cdr.IMAGE, {"encoding": "rgb8"}, r"expected uint8 \[H, W, 3\]"),
        ("/joints", cdr.JOINT_STATE, {"name": ["a"], "position": [1.0]}, "expected the joints"),
        ("/joints", cdr.JOINT_STATE, {"name": ["a", "b"]}, "with 0 positions"),
        ("/gripper", cdr.FLOATS, {"data": [1.0, 2.0]}, "expected 1 numbers, got 2"),
        ("/gripper", cdr.FLOATS, {"data": [np.nan]}, "expected finite numbers"),
    ],
)
def test_a_message_that_does_not_fit_is_refused(
    topic: str, kind: str, message: dict[str, Any], expected: str
) -> None:
    graph = Graph()
    robot = robot_on(graph)
    graph.send_all()
    graph.send(topic, kind, message)
    with pytest.raises(BridgeError, match=expected):
        robot.observe()


@pytest.mark.parametrize(
    ("changes", "resting", "expected"),
    [
        ({"commands": []}, {}, "cameras, proprio and commands must be set"),
        (
            {"cameras": {"agentview": JOINTS}},
            {},
            r"ros2.cameras.agentview: .*sensor_msgs/msg/Image",
        ),
        ({"proprio": [CAMERA]}, {}, r"ros2.proprio\[0\]: expected a topic of type"),
        ({"proprio": [replace(JOINTS, names=[])]}, {}, r"proprio\[0\].names: must be set"),
        ({"position": JOINTS}, {}, "ros2.position: .*PoseStamped"),
        ({}, {"home": [0.0]}, "rest.home: expected 3 numbers or none, got 1"),
        ({"proprio": [JOINTS]}, {}, "proprio must begin with where the commanded joints are"),
        ({"commands": [Ros2Topic("/v", cdr.TWIST)]}, {"home": []}, "or it would move on"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_moves(
    changes: dict[str, Any], resting: dict[str, Any], expected: str
) -> None:
    graph = Graph()
    with pytest.raises(ConfigError, match=expected):
        robot_on(graph, replace(CONFIG, **changes), replace(REST, **resting))
    assert not graph.published

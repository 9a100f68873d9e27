"""What is asked of rclpy, by a stand-in for the part of it that is used: ROS 2 is not on PyPI."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from patience import HANG_S

from sim_bridge.robots import cdr
from sim_bridge.robots.config import Ros2Config
from sim_bridge.robots.ros2_transports import make_transport


class Rclpy:
    """Notes calls; its executor spins until it is shut down."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.calls: list[tuple[Any, ...]] = []
        self.spinning: threading.Thread | None = None

    def spin(self) -> None:
        self.spinning = threading.current_thread()
        assert self.over.wait(HANG_S)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        node = SimpleNamespace(
            create_subscription=lambda *words, raw: self.calls.append(("subscribe", *words, raw)),
            create_publisher=lambda *words: SimpleNamespace(
                publish=lambda message: self.calls.append(("publish", *words, message))
            ),
            destroy_node=lambda: self.calls.append(("destroy_node",)),
        )
        executor = SimpleNamespace(
            add_node=lambda _node: None, spin=self.spin, shutdown=lambda _s: self.over.set()
        )
        modules = {
            "rclpy": {
                "init": lambda context, domain_id: self.calls.append(("init", domain_id)),
                "create_node": lambda _name, context: node,
                "shutdown": lambda context: self.calls.append(("shutdown",)),
            },
            "rclpy.context": {"Context": object},
            "rclpy.executors": {"SingleThreadedExecutor": lambda context: executor},
            "rclpy.qos": {"qos_profile_sensor_data": "sensor data"},
            "rosidl_runtime_py": {},
            "rosidl_runtime_py.utilities": {"get_message": lambda kind: f"class of {kind}"},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(members, __spec__=SimpleNamespace())
            monkeypatch.setitem(sys.modules, name, module)


def test_bytes_pass_through_rclpy_as_they_are_and_its_thread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rclpy, got = Rclpy(), []
    rclpy.install(monkeypatch)
    transport = make_transport(Ros2Config(domain=7))  # auto: it comes first
    transport.subscribe("/joints", cdr.JOINT_STATE, got.append)
    transport.advertise("/arm", cdr.FLOATS)(b"payload")
    transport.close()
    assert rclpy.calls == [
        ("init", 7),
        ("subscribe", f"class of {cdr.JOINT_STATE}", "/joints", got.append, "sensor data", True),
        ("publish", f"class of {cdr.FLOATS}", "/arm", 1, b"payload"),
        ("destroy_node",),
        ("shutdown",),
    ]
    assert rclpy.spinning is not None
    assert not rclpy.spinning.is_alive()

"""Settings of the robot's process; `configs/robot.yaml` sets them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.process.checks import require_above, require_range
from agent.wire.errors import ConfigError
from sim_bridge.config import require_client_id

ROBOTS = ("simulated", "replay", "lerobot", "ros2")
IMAGINED = ("simulated", "replay")  # nothing moves but numbers
UNITS_MAX = 1e9  # in a robot's units: what is larger is a mistake
TRANSPORTS = ("auto", "rclpy", "dds", "zenoh")


@dataclass
class LimitsConfig:
    """In the robot's units. An empty list: none. One number stands for every dimension."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)  # largest change from action to action
    box_low_m: list[float] = field(default_factory=list)  # of the grasp point
    box_high_m: list[float] = field(default_factory=list)
    metres_per_unit: float = 0.0  # of the first three actions; 0: there is no box

    def check(self) -> None:
        """Raises ConfigError for the first value out of range."""
        for step in self.step:
            require_above("limits.step", step, 0, UNITS_MAX)
        require_range("limits.metres_per_unit", self.metres_per_unit, 0, UNITS_MAX)
        for name in ("low", "high", "box_low_m", "box_high_m"):
            for bound in getattr(self, name):
                require_range(f"limits.{name}", bound, -UNITS_MAX, UNITS_MAX)


@dataclass
class RestConfig:
    """What a lerobot or ros2 robot does when no policy moves it; its actions' units."""

    home: list[float] = field(default_factory=list)  # where a reset moves; []: a person resets
    home_s: float = 5.0  # how long that movement takes
    hold_action: list[float] = field(default_factory=list)  # to keep still; []: nothing is sent

    def check(self) -> None:
        """Raises ConfigError for the first value out of range."""
        require_range("rest.home_s", self.home_s, 0.1, 600)
        for name in ("home", "hold_action"):
            for value in getattr(self, name):
                require_range(f"rest.{name}", value, -UNITS_MAX, UNITS_MAX)


@dataclass
class LeRobotConfig:
    """A robot of the `lerobot` package, or of one's own derived from its `Robot`."""

    robot: str = ""  # module:Class, e.g. lerobot.robots.so101_follower:SO101Follower
    arguments: dict[str, Any] = field(default_factory=dict)  # of its config, as lerobot reads them
    modules: list[str] = field(default_factory=list)  # imported first, e.g. lerobot.cameras.opencv
    cameras: dict[str, str] = field(default_factory=dict)  # camera -> key of an observation
    proprio: list[str] = field(default_factory=list)  # keys, joined in this order
    actions: list[str] = field(default_factory=list)  # all its action's keys, in the policy's order
    position: list[str] = field(default_factory=list)  # keys of the grasp point's x, y, z in m


@dataclass
class Ros2Topic:
    """One topic. Type: as ROS 2 writes it, e.g. sensor_msgs/msg/JointState."""

    topic: str = ""
    type: str = ""
    names: list[str] = field(default_factory=list)  # of a JointState's joints, in this order
    size: int = 0  # numbers of a Float64MultiArray
    frame: str = ""  # frame_id of a commanded PoseStamped or TwistStamped

    def check(self) -> None:
        """Raises ConfigError for the first value out of range."""
        require_range("size of a ros2 topic", self.size, 0, 10_000)


@dataclass
class Ros2Config:
    """A robot on ROS 2 topics."""

    transport: str = "auto"  # rclpy, dds or zenoh; auto: the first that is installed
    domain: int = 0  # ROS_DOMAIN_ID; of rclpy and dds
    zenoh_endpoints: list[str] = field(default_factory=list)  # []: found by multicast
    cameras: dict[str, Ros2Topic] = field(default_factory=dict)  # Image or CompressedImage
    proprio: list[Ros2Topic] = field(default_factory=list)  # joined in this order
    commands: list[Ros2Topic] = field(default_factory=list)  # each takes its share of the action
    position: Ros2Topic = field(default_factory=Ros2Topic)  # PoseStamped of the grasp point
    stale_s: float = 0.5  # an older message ends the episode
    first_s: float = 10.0  # how long a reset waits for every topic's first message

    def check(self) -> None:
        """Raises ConfigError for the first value out of range."""
        require_range("ros2.stale_s", self.stale_s, 0.01, 600)
        require_range("ros2.first_s", self.first_s, 0.1, 600)
        require_range("ros2.domain", self.domain, 0, 232)
        for topic in (*self.cameras.values(), *self.proprio, *self.commands, self.position):
            topic.check()
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"ros2.transport: expected one of {', '.join(TRANSPORTS)}, got '{self.transport}'"
            )


@dataclass
class RobotConfig:
    """One robot in real time. Raises ConfigError for values that cannot work."""

    endpoint: str = "tcp://127.0.0.1:5555"  # the agent's robots socket
    keys_dir: str = ""  # this client's keys, made by `perennial keys add`; "": in clear
    robot: str = "simulated"  # or replay, lerobot, ros2, module:Class of one's own
    suite: str = "tabletop"  # of a simulated robot
    image_size: int = 64  # pixels a side that the server wants; not of a replay robot
    protocol: str = "disjoint"
    renderer: str = "exact"
    replay_dir: str = ""  # of a replay robot: a folder with episodes
    lerobot: LeRobotConfig = field(default_factory=LeRobotConfig)  # of robot=lerobot
    ros2: Ros2Config = field(default_factory=Ros2Config)  # of robot=ros2
    rest: RestConfig = field(default_factory=RestConfig)  # of lerobot and ros2
    task: str = ""  # registered with the agent
    episodes: int = 0  # so many, then it ends; 0: until SIGTERM
    horizon_steps: int = 200
    outcome: str = "robot"  # who says it: robot, operator (keys), or module:function
    rate_hz: float = 20.0
    lead_ticks: int = 3  # before a chunk's end, at which the next one is asked for; 0: stand still
    blend_ticks: int = 0
    stale_s: float = 1.0  # an answer to an older observation is refused
    watchdog_s: float = 0.5  # without a fresh action: the robot is reported as held
    give_up_s: float = 20.0  # and its episode given up
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    client_id: str = "robot-0"
    log_path: str = "robot.jsonl"  # answered episode ends
    report_path: str = ""  # a JSON file with the ticks' punctuality at the end; "": none
    request_timeout_s: float = 2.0
    threads: int = 1
    die_with_parent: bool = False

    def __post_init__(self) -> None:
        require_client_id(self.client_id)
        if self.robot not in ROBOTS and ":" not in self.robot:
            raise ConfigError(
                f"robot: expected one of {', '.join(ROBOTS)}, or module:Class, got '{self.robot}'"
            )
        if self.robot == "replay" and not self.replay_dir:
            raise ConfigError("replay_dir: name a folder with recorded episodes, e.g. agent-state")
        if not self.task:
            raise ConfigError("task: name one that the agent knows, e.g. task=pick_red_tray")
        require_range("rate_hz", self.rate_hz, 0.1, 1000)
        require_range("horizon_steps", self.horizon_steps, 1, 1_000_000)
        require_range("stale_s", self.stale_s, 1.0 / self.rate_hz, 600)
        require_range("watchdog_s", self.watchdog_s, 1.0 / self.rate_hz, 600)
        require_range("give_up_s", self.give_up_s, self.watchdog_s, 3600)
        require_range("request_timeout_s", self.request_timeout_s, 0.05, 600)
        require_range("image_size", self.image_size, 8, 2048)
        require_range("episodes", self.episodes, 0, 1_000_000_000)
        require_range("lead_ticks", self.lead_ticks, 0, 1000)
        require_range("blend_ticks", self.blend_ticks, 0, 1000)
        require_range("threads", self.threads, 1, 1024)
        self.limits.check()
        self.rest.check()
        self.ros2.check()

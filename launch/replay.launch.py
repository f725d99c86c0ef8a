"""Plays a bag through the stack and ends with it.

    ros2 launch e2e_perception replay.launch.py bag:=/path/to/bag rig:=kitti_highway record:=outputs

Starts the perception node on simulated time, the player, and a recorder if `record` names a directory.
"""

from __future__ import annotations

from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

ARGUMENTS = {
    "rate": ("1.0", "Speed of play."),
    "loop": ("false", "Play again and again."),
    "start": ("0.0", "Skip so much of the beginning [s]."),
    "duration": ("0.0", "Play so much of the bag [s]; 0: to its end."),
    "remap": ("", "Publish topics under other names, e.g. `/cam:=/camera/image_raw,/points:=/lidar/points`."),
    "wait_for_subscribers": ("1", "Begin when so many of the bag's topics have a subscriber."),
    "record": ("", "Bag directory to create with the stack's outputs; empty: none."),
}
PASSED_ON = ("params_file", "bundle", "backend", "rig", "namespace", "sensor_topics")


def _start(context: LaunchContext) -> list[object]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ("bag", *ARGUMENTS)}
    options: dict[str, object] = {
        "bag": given["bag"],
        "rate": float(given["rate"]),
        "loop": given["loop"].lower() == "true",
        "start": float(given["start"]),
        "duration": float(given["duration"]),
        "wait_for_subscribers": int(given["wait_for_subscribers"]),
    }
    if given["remap"]:
        options["remap"] = [rule.strip() for rule in given["remap"].split(",")]
    bringup = PathJoinSubstitution([FindPackageShare("e2e_perception"), "launch", "bringup.launch.py"])
    passed = {name: LaunchConfiguration(name) for name in PASSED_ON}
    player = Node(package="e2e_perception", executable="replay_node", parameters=[options], output="screen")
    actions: list[object] = [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(bringup),
            launch_arguments={**passed, "use_sim_time": "true"}.items(),
        ),
        player,
        RegisterEventHandler(
            OnProcessExit(target_action=player, on_exit=[Shutdown(reason="the bag is over")])
        ),
    ]
    if given["record"]:
        actions.insert(
            1,
            Node(
                package="e2e_perception",
                executable="recorder_node",
                namespace=LaunchConfiguration("namespace"),
                parameters=[{"out": given["record"], "use_sim_time": True}],
                output="screen",
            ),
        )
    return actions


def generate_launch_description() -> LaunchDescription:
    """Declared arguments, then the nodes."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    passed = [
        DeclareLaunchArgument(name, default_value="", description="See bringup.launch.py.")
        for name in PASSED_ON
    ]
    # Without a default: launch itself names it when it is missing.
    bag = DeclareLaunchArgument("bag", description="Bag directory or file to play.")
    return LaunchDescription([bag, *declared, *passed, OpaqueFunction(function=_start)])

"""Brings the stack up: `ros2 launch e2e_perception bringup.launch.py rig:=tiny`.

`ros2 launch e2e_perception bringup.launch.py --show-args` lists the arguments. An argument left empty
leaves the value of the parameter file, or the default of docs/parameters.md.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

ARGUMENTS = {
    "params_file": ("", "YAML file with ROS parameters; empty: config/perception.yaml of the package."),
    "bundle": ("", "Bundle directory, or the name of a shipped bundle."),
    "backend": ("", "Inference backend: auto, onnxruntime or torch."),
    "rig": ("", "Rig file, or the name of a shipped rig."),
    "namespace": ("", "Namespace of the node and its outputs."),
    "use_sim_time": ("false", "Take time from /clock, as for a replayed bag."),
    "autostart": ("true", "Configure and activate at once; false leaves it to a lifecycle manager."),
    "sensor_topics": (
        "",
        "Topics in place of the rig's, e.g. `front:=/cam/image_raw,top:=/velodyne_points`.",
    ),
    "log_level": ("info", "Log level of the node."),
}
PARAMETER_OF = {"bundle": "engine.bundle", "backend": "engine.backend", "rig": "node.rig"}


def _start(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    overrides: dict[str, object] = {
        parameter: given[argument] for argument, parameter in PARAMETER_OF.items() if given[argument]
    }
    if given["sensor_topics"]:
        overrides["node.sensor_topics"] = [rule.strip() for rule in given["sensor_topics"].split(",")]
    overrides["use_sim_time"] = given["use_sim_time"].lower() == "true"
    overrides["autostart"] = given["autostart"].lower() == "true"
    default = PathJoinSubstitution([FindPackageShare("e2e_perception"), "config", "perception.yaml"])
    return [
        Node(
            package="e2e_perception",
            executable="perception_node",
            name="perception_node",
            namespace=given["namespace"],
            parameters=[given["params_file"] or default, overrides],
            arguments=["--ros-args", "--log-level", given["log_level"]],
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Declared arguments, then the node."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_start)])

"""Drives a scenario in closed loop and ends with it.

    ros2 launch e2e_perception sim.launch.py scenario:=highway+stopped_queue/3 out:=drive_out

Starts the perception node on simulated time, the simulator, and a recorder if `record` names a directory.
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
    "seed": ("-1", "In place of the scenario's; -1: keep that."),
    "degradation": ("", "What the sensors suffer: a file, or a shipped degradation's name."),
    "out": ("", "Directory for episode.html and outcome.json; empty: none."),
    "rate": ("1.0", "Simulated seconds per second at most; 0: as fast as it goes."),
    "lockstep": ("true", "Let simulated time wait for the plans; false: a late plan is late."),
    "plan_timeout": ("10.0", "How long to wait for a plan [s]."),
    "start_timeout": ("60.0", "How long to wait for the stack at the start [s]."),
    "duration": ("0.0", "End the episode after this [s]; 0: when it is over."),
    "record": ("", "Bag directory to create with the stack's outputs; empty: none."),
    "rig": ("tiny", "Rig file, or the name of a shipped rig; of the simulator and of the stack."),
    "namespace": ("", "Namespace of the perception node and its outputs."),
}
PASSED_ON = ("params_file", "bundle", "backend")
NUMBERS = ("rate", "plan_timeout", "start_timeout", "duration")


def _start(context: LaunchContext) -> list[object]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ("scenario", *ARGUMENTS)}
    planner = "/".join(part for part in (given["namespace"].strip("/"), "perception_node") if part)
    options: dict[str, object] = {
        **{name: given[name] for name in ("scenario", "degradation", "out", "rig")},
        **{name: float(given[name]) for name in NUMBERS},
        "seed": int(given["seed"]),
        "lockstep": given["lockstep"].lower() == "true",
        "planner": planner,
    }
    bringup = PathJoinSubstitution([FindPackageShare("e2e_perception"), "launch", "bringup.launch.py"])
    passed = {name: LaunchConfiguration(name) for name in (*PASSED_ON, "rig", "namespace")}
    simulator = Node(package="e2e_perception", executable="sim_node", parameters=[options], output="screen")
    actions: list[object] = [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(bringup),
            launch_arguments={**passed, "use_sim_time": "true"}.items(),
        ),
        simulator,
        RegisterEventHandler(
            OnProcessExit(target_action=simulator, on_exit=[Shutdown(reason="the episode is over")])
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
    scenario = DeclareLaunchArgument("scenario", description="`family/seed` or `family/seed@difficulty`.")
    return LaunchDescription([scenario, *declared, *passed, OpaqueFunction(function=_start)])

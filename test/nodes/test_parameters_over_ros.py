"""Every parameter through the six parameter services, from another process: what `ros2 param` would see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")

from node_harness import Robot
from rcl_interfaces.msg import ParameterType
from rclpy.parameter import Parameter, parameter_value_to_python

from e2e_perception.core.config import ParameterSpec, parameter_specs

pytestmark = pytest.mark.ros

SPECS = list(parameter_specs())
KINDS = {
    "bool": Parameter.Type.BOOL,
    "integer": Parameter.Type.INTEGER,
    "double": Parameter.Type.DOUBLE,
    "string": Parameter.Type.STRING,
    "string_array": Parameter.Type.STRING_ARRAY,
}


def another_value(spec: ParameterSpec) -> Any:
    """A valid value that is not the default."""
    if spec.kind == "bool":
        return not spec.default
    if spec.kind in ("integer", "double"):
        assert spec.minimum is not None
        assert spec.maximum is not None
        middle = (spec.minimum + spec.maximum) / 2.0
        value = middle if middle != spec.default else spec.minimum
        return round(value) if spec.kind == "integer" else value
    if spec.choices:
        return next(choice for choice in spec.choices if choice != spec.default)
    if spec.name == "triggers.rules":
        return ["{name: fast, when: speed > 20}"]
    return ["front"] if spec.kind == "string_array" else "another"


@pytest.fixture
def parameters(robot: Robot, start: Callable[..., Any]) -> Any:
    """A node that is not configured: its parameters are all there, and no bundle is needed."""
    robot.process = start("perception_node", {"autostart": False})
    return robot.parameters()


def get(robot: Robot, client: Any, name: str) -> Any:
    values = robot.result(client.get_parameters([name]), f"getting {name}").values
    return parameter_value_to_python(values[0])


def test_every_parameter_is_listed_and_described(robot: Robot, parameters: Any) -> None:
    listed = robot.result(parameters.list_parameters(), "the list").result.names
    assert {spec.name for spec in SPECS} <= set(listed)
    descriptors = robot.result(
        parameters.describe_parameters([s.name for s in SPECS]), "descriptors"
    ).descriptors
    for spec, descriptor in zip(SPECS, descriptors, strict=True):
        assert descriptor.name == spec.name
        assert descriptor.type == KINDS[spec.kind].value, spec.name
        assert descriptor.read_only == spec.read_only, spec.name
        assert descriptor.description.startswith(spec.description)
        assert f"[{spec.unit}]" in descriptor.description or not spec.unit
        if spec.kind == "double" and spec.minimum is not None:
            span = descriptor.floating_point_range[0]
            assert (span.from_value, span.to_value) == (spec.minimum, spec.maximum), spec.name
        if spec.kind == "integer":
            whole = descriptor.integer_range[0]
            assert (whole.from_value, whole.to_value) == (spec.minimum, spec.maximum), spec.name
        for choice in spec.choices:
            assert choice in descriptor.additional_constraints


def test_every_live_parameter_is_set_and_read_back(robot: Robot, parameters: Any) -> None:
    for spec in SPECS:
        if spec.read_only:
            continue
        value = another_value(spec)
        answer = robot.set_parameter(parameters, spec.name, KINDS[spec.kind], value)
        assert answer.successful, f"{spec.name}: {answer.reason}"
        assert get(robot, parameters, spec.name) == value


def test_every_read_only_parameter_is_given_at_the_start_read_back_and_refused_later(
    robot: Robot, start: Callable[..., Any]
) -> None:
    values = {spec.name: another_value(spec) for spec in SPECS if spec.read_only}
    robot.process = start("perception_node", {"autostart": False, **values})
    client = robot.parameters()
    for spec in SPECS:
        if not spec.read_only:
            continue
        assert get(robot, client, spec.name) == values[spec.name]
        answer = robot.set_parameter(client, spec.name, KINDS[spec.kind], spec.default)
        assert not answer.successful
        assert "read-only" in answer.reason
        assert get(robot, client, spec.name) == values[spec.name]


def test_defaults_are_those_of_the_configuration(robot: Robot, parameters: Any) -> None:
    values = robot.result(parameters.get_parameters([s.name for s in SPECS]), "all values").values
    for spec, value in zip(SPECS, values, strict=True):
        assert value.type == KINDS[spec.kind].value, spec.name
        got = parameter_value_to_python(value)
        assert (list(got) if spec.kind == "string_array" else got) == spec.default, spec.name


def test_values_out_of_range_are_refused_with_the_bounds(robot: Robot, parameters: Any) -> None:
    for spec in SPECS:
        if spec.read_only or spec.kind not in ("integer", "double"):
            continue
        assert spec.minimum is not None
        assert spec.maximum is not None
        for value in (spec.minimum - 1, spec.maximum + 1):
            typed = int(value) if spec.kind == "integer" else float(value)
            answer = robot.set_parameter(parameters, spec.name, KINDS[spec.kind], typed)
            assert not answer.successful, spec.name
            assert "out of range" in answer.reason
            assert f"{spec.maximum:g}" in answer.reason
        assert get(robot, parameters, spec.name) == spec.default


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_numbers_are_refused(robot: Robot, parameters: Any, value: float) -> None:
    answer = robot.set_parameter(parameters, "planning.speed_limit", Parameter.Type.DOUBLE, value)
    assert not answer.successful
    assert "planning.speed_limit" in answer.reason


def test_unknown_names_and_wrong_types_are_refused(robot: Robot, parameters: Any) -> None:
    unknown = robot.set_parameter(parameters, "planning.speedlimit", Parameter.Type.DOUBLE, 3.0)
    assert not unknown.successful
    assert "undeclared" in unknown.reason  # rclpy's words; it does not say which
    wrong = robot.set_parameter(parameters, "planning.speed_limit", Parameter.Type.STRING, "fast")
    assert not wrong.successful
    assert "expected" in wrong.reason


def test_a_refused_value_in_a_group_leaves_all_of_it_unchanged(robot: Robot, parameters: Any) -> None:
    group = [
        Parameter("planning.weight_comfort", Parameter.Type.DOUBLE, 1.5).to_parameter_msg(),
        Parameter("planning.weight_route", Parameter.Type.DOUBLE, -1.0).to_parameter_msg(),
    ]
    answer = robot.result(parameters.set_parameters_atomically(group), "the group").result
    assert not answer.successful
    default = next(spec.default for spec in SPECS if spec.name == "planning.weight_comfort")
    assert get(robot, parameters, "planning.weight_comfort") == default


def test_a_live_parameter_acts_on_the_next_frames(perception: Robot) -> None:
    perception.frame()
    client = perception.parameters()
    answer = perception.set_parameter(client, "planning.assume_straight_route", Parameter.Type.BOOL, False)
    assert answer.successful
    health = perception.spin_until(
        lambda: next(
            (h for h in [perception.frame()] if any("none may be assumed" in r for r in h.reasons)), None
        ),
        "frames without a route",
    )
    assert health.plans < health.frames


def test_a_parameter_file_is_understood(robot: Robot, start: Callable[..., Any], tmp_path: Any) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    planning: {speed_limit: 12}\n    sync: {anchors: []}\n"
        "    node.publish_candidates: true\n",
        encoding="utf-8",
    )
    robot.process = start("perception_node", {"autostart": False}, "--params-file", str(file))
    client = robot.parameters()
    assert get(robot, client, "planning.speed_limit") == 12.0
    assert list(get(robot, client, "sync.anchors")) == []
    assert get(robot, client, "node.publish_candidates") is True


def test_shipped_parameter_file_states_the_defaults(robot: Robot, start: Callable[..., Any]) -> None:
    from node_harness import ROOT

    shipped = str(ROOT / "config" / "perception.yaml")
    robot.process = start("perception_node", {"autostart": False}, "--params-file", shipped)
    client = robot.parameters()
    values = robot.result(client.get_parameters([s.name for s in SPECS]), "all values").values
    for spec, value in zip(SPECS, values, strict=True):
        assert value.type != ParameterType.PARAMETER_NOT_SET
        assert parameter_value_to_python(value) == spec.default or spec.default == []
    robot.health_saying("unconfigured")

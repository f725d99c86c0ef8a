"""The configuration tree as ROS parameters: one declared parameter for each leaf of `StackConfig`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.parameter import Parameter

from e2e_perception.core.config import (
    EngineConfig,
    ParameterSpec,
    ParameterValue,
    Section,
    StackConfig,
    config_from_parameters,
    parameter_specs,
    section_specs,
    validated,
)
from e2e_perception.core.errors import ConfigError, E2EPerceptionError

_TYPES = {
    "bool": Parameter.Type.BOOL,
    "integer": Parameter.Type.INTEGER,
    "double": Parameter.Type.DOUBLE,
    "string": Parameter.Type.STRING,
    "string_array": Parameter.Type.STRING_ARRAY,
}
_Options = TypeVar("_Options", bound=Section)
# Parameters of rclpy itself.
_FOREIGN = ("use_sim_time", "start_type_description_service")
_FOREIGN_PREFIX = "qos_overrides."


def node_help(about: str, specs: Iterable[ParameterSpec]) -> str:
    """What a node's `--help` prints: what it is, how to give a parameter, and all of them."""
    lines = [about.strip(), "", "Parameters, each as --ros-args -p name:=value, or --params-file FILE:", ""]
    for spec in specs:
        span = f" {spec.minimum:g} to {spec.maximum:g}" if spec.minimum is not None else ""
        allowed = f" ({', '.join(spec.choices)})" if spec.choices else f" ({spec.kind}{span} {spec.unit})"
        lines.append(f"  {spec.name} = {spec.default!r}{allowed.replace(' )', ')')}")
        lines.append(f"      {spec.description}{'' if not spec.read_only else ' Read-only once it runs.'}")
    return "\n".join(lines)


def describe(spec: ParameterSpec) -> ParameterDescriptor:
    """What `ros2 param describe` shows of a parameter."""
    unit = f" [{spec.unit}]" if spec.unit else ""
    descriptor = ParameterDescriptor(
        name=spec.name,
        type=_TYPES[spec.kind].value,
        description=f"{spec.description}{unit}",
        read_only=spec.read_only,
    )
    if spec.choices:
        descriptor.additional_constraints = f"one of: {', '.join(spec.choices)}"
    if spec.minimum is not None and spec.maximum is not None:
        if spec.kind == "integer":
            whole = IntegerRange(from_value=int(spec.minimum), to_value=int(spec.maximum), step=1)
            descriptor.integer_range = [whole]
        elif spec.kind == "double":
            span = FloatingPointRange(from_value=spec.minimum, to_value=spec.maximum, step=0.0)
            descriptor.floating_point_range = [span]
    return descriptor


def declare(node: Any, name: str, kind: Parameter.Type, value: Any, descriptor: ParameterDescriptor) -> None:
    """Declare one parameter.

    Done in three steps because rclpy takes an empty list for a list of bytes, and because a read-only
    parameter can be given a value only before it is read-only.
    """
    writable = copy.deepcopy(descriptor)
    writable.read_only = False
    node.declare_parameter(name, kind, writable, ignore_override=True)
    node.set_parameters([Parameter(name, kind, value)])
    if descriptor.read_only:
        final = copy.deepcopy(descriptor)
        final.type = kind.value
        node.set_descriptor(name, final)


def given_values(node: Any) -> dict[str, Any]:
    """Values given by parameter files and the command line, by name, without those of rclpy's own parameters.

    rclpy silently ignores values given to names that nobody declares, such as misspelt ones, and has no
    public way to list them: declaring them all by itself fails on an empty list, which it reads as no value.
    """
    overrides = node._parameter_overrides
    return {
        name: parameter.value
        for name, parameter in overrides.items()
        if parameter.value is not None and name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIX)
    }


def declared_options(node: Any, model: type[_Options]) -> _Options:
    """Declare the parameters of a node whose options never change, with the values given to it.

    Raises:
        ConfigError: If a given value is unknown or out of range.
    """
    given = given_values(node)
    options = validated(model, given, f"parameters of {node.get_name()}")
    for spec in section_specs(model):
        value = getattr(options, spec.name)
        declare(
            node,
            spec.name,
            _TYPES[spec.kind],
            float(value) if spec.kind == "double" else value,
            describe(spec),
        )
    return options


class StackParameters:
    """The stack's parameters of one node.

    Attributes:
        config: The present configuration.
        problem: What is wrong with the values given at the start; then the defaults are in force.
    """

    def __init__(
        self, node: Any, given: dict[str, Any], on_change: Callable[[StackConfig], Callable[[], None]]
    ) -> None:
        """Declare all parameters.

        Args:
            node: A node without them.
            given: Values from parameter files and the command line, by name.
            on_change: Asked whenever parameters are to be set, with the configuration that would result;
                raises `E2EPerceptionError` if it may not be, else gives what is to be done once it is.
        """
        self.problem = ""
        self._node = node
        self._on_change = on_change
        self._specs = {spec.name: spec for spec in parameter_specs()}
        try:
            self.config = config_from_parameters(given)
        except ConfigError as error:
            self.config = StackConfig()
            self.problem = str(error)
        for spec in self._specs.values():
            declare(node, spec.name, _TYPES[spec.kind], self._value(spec), describe(spec))
        node.add_on_set_parameters_callback(self._on_set)

    def _value(self, spec: ParameterSpec) -> ParameterValue:
        section, _, leaf = spec.name.partition(".")
        value = getattr(getattr(self.config, section), leaf)
        return float(value) if spec.kind == "double" else value

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Check values set from outside; all of them hold, or none."""
        values = {p.name: p.value for p in parameters if p.name in self._specs}
        if not values:
            return SetParametersResult(successful=True)
        try:
            config = config_from_parameters(values, self.config)
            put_in_force = self._on_change(config)
        except E2EPerceptionError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.config = config
        put_in_force()
        return SetParametersResult(successful=True)

    def show(self, engine: EngineConfig) -> None:
        """Set the parameters of the engine to what really runs; in the executor's thread."""
        values = {f"engine.{name}": value for name, value in engine.model_dump().items()}
        self._node.set_parameters_atomically(
            [Parameter(name, _TYPES[self._specs[name].kind], value) for name, value in values.items()]
        )

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2e_perception.core.config import (
    ParameterSpec,
    StackConfig,
    config_from_parameters,
    load_config,
    parameter_specs,
)
from e2e_perception.core.errors import ConfigError

SPECS = list(parameter_specs())


def value_of(config: StackConfig, name: str) -> Any:
    section, _, leaf = name.partition(".")
    return getattr(getattr(config, section), leaf)


def another(spec: ParameterSpec) -> Any:
    """A legal value other than the default."""
    if spec.choices:
        return next(choice for choice in spec.choices if choice != spec.default)
    if spec.kind == "bool":
        return not spec.default
    if spec.kind == "string":
        return f"{spec.default}_2"
    if spec.name == "triggers.rules":
        return ["{name: fast, when: speed > 20}"]
    if spec.kind == "string_array":
        return ["front", "rear"]
    assert spec.minimum is not None
    bound = spec.minimum if spec.default != spec.minimum else spec.maximum
    assert bound is not None
    return int(bound) if spec.kind == "integer" else bound


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestSpecs:
    def test_every_leaf_of_the_tree_is_one_parameter(self) -> None:
        names = [spec.name for spec in SPECS]
        tree = StackConfig().model_dump()
        assert names == [f"{section}.{leaf}" for section, leaves in tree.items() for leaf in leaves]

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
    def test_parameter_is_described_and_its_default_is_of_its_kind_and_in_range(
        self, spec: ParameterSpec
    ) -> None:
        assert spec.description.endswith(".")
        kinds = {"bool": bool, "integer": int, "double": float, "string": str, "string_array": list}
        assert type(spec.default) is kinds[spec.kind]
        assert spec.default == value_of(StackConfig(), spec.name)
        if spec.kind in ("integer", "double"):
            assert spec.minimum is not None
            assert spec.maximum is not None
            assert isinstance(spec.default, (int, float))
            assert spec.minimum <= spec.default <= spec.maximum
        if spec.choices:
            assert spec.default in spec.choices

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
    def test_parameter_can_be_set_alone(self, spec: ParameterSpec) -> None:
        value = another(spec)
        config = config_from_parameters({spec.name: value})
        assert value_of(config, spec.name) == value
        unchanged = [other.name for other in SPECS if other.name != spec.name]
        assert all(value_of(config, name) == value_of(StackConfig(), name) for name in unchanged)

    @pytest.mark.parametrize(
        "spec", [s for s in SPECS if s.kind in ("integer", "double")], ids=lambda spec: spec.name
    )
    def test_value_beyond_a_bound_is_refused_by_name(self, spec: ParameterSpec) -> None:
        assert spec.minimum is not None
        assert spec.maximum is not None
        step = 1 if spec.kind == "integer" else 1e-6
        for value in (spec.minimum - step, spec.maximum + step):
            typed = int(value) if spec.kind == "integer" else value
            with pytest.raises(ConfigError, match=f"parameters: {spec.name} = .*should be (less|greater)"):
                config_from_parameters({spec.name: typed})


class TestValues:
    def test_base_is_kept_where_nothing_is_given(self) -> None:
        base = config_from_parameters({"planning.speed_limit": 10.0})
        config = config_from_parameters({"sync.max_wait_ms": 20.0}, base)
        assert (config.planning.speed_limit, config.sync.max_wait_ms) == (10.0, 20.0)
        assert base.sync.max_wait_ms == StackConfig().sync.max_wait_ms

    def test_whole_number_is_welcome_where_a_double_is_meant(self) -> None:
        value = config_from_parameters({"sync.max_wait_ms": 20}).sync.max_wait_ms
        assert value == 20.0
        assert isinstance(value, float)

    def test_array_may_come_as_a_tuple(self) -> None:
        assert config_from_parameters({"sync.anchors": ("top",)}).sync.anchors == ["top"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("sync.max_wait_ms", "20"),
            ("sync.max_wait_ms", True),
            ("sync.max_wait_ms", float("nan")),
            ("sync.queue_size", 3.0),
            ("sync.queue_size", "3"),
            ("node.use_tf", 1),
            ("node.use_tf", "yes"),
            ("engine.bundle", 1),
            ("sync.anchors", "top"),
            ("sync.anchors", [1]),
            ("sync.policy", "newest"),
        ],
    )
    def test_value_of_another_type_is_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"parameters: {name}"):
            config_from_parameters({name: value})

    @pytest.mark.parametrize("name", ["sync.max_weight", "sink.max_wait_ms", "sync", "max_wait_ms", ""])
    def test_unknown_parameter_is_refused_and_told_where_to_look(self, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"unknown parameter '{name}'; `docs/parameters.md`"):
            config_from_parameters({name: 1.0})

    def test_all_that_is_wrong_is_named_at_once(self) -> None:
        with pytest.raises(ConfigError) as raised:
            config_from_parameters({"sync.max_wait_ms": -1.0, "node.use_tf": 3})
        assert "sync.max_wait_ms = -1.0" in str(raised.value)
        assert "node.use_tf = 3" in str(raised.value)

    def test_config_is_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            StackConfig().sync.max_wait_ms = 1.0  # type: ignore[misc]


class TestFiles:
    @pytest.mark.parametrize(
        "text",
        [
            "sync: {max_wait_ms: 20.0}",
            "sync.max_wait_ms: 20",
            "perception_node: {ros__parameters: {sync: {max_wait_ms: 20.0}}}",
            "perception_node: {ros__parameters: {sync.max_wait_ms: 20.0, use_sim_time: true}}",
            "/perception_node: {ros__parameters: {sync.max_wait_ms: 20.0}}",
            "/robot/perception_node: {ros__parameters: {sync.max_wait_ms: 20.0}}",
            "'/**': {ros__parameters: {sync.max_wait_ms: 20.0}}",
            "my_stack: {ros__parameters: {sync.max_wait_ms: 20.0}}",
            "replay_node: {ros__parameters: {rate: 2.0}}\n"
            "perception_node: {ros__parameters: {sync.max_wait_ms: 20.0}}",
            "perception_node: {ros__parameters: {sync.max_wait_ms: 20.0}}\n"
            "'/**': {ros__parameters: {sync.max_wait_ms: 30.0}}",
        ],
    )
    def test_bare_and_ros_files_in_nested_and_dotted_form_are_understood(
        self, tmp_path: Path, text: str
    ) -> None:
        config = load_config(write(tmp_path, text))
        assert config == config_from_parameters({"sync.max_wait_ms": 20.0})

    def test_general_entry_and_node_entry_add_up(self, tmp_path: Path) -> None:
        text = (
            "'/**': {ros__parameters: {planning.speed_limit: 9.0, sync: {max_wait_ms: 30.0}}}\n"
            "perception_node: {ros__parameters: {sync.max_wait_ms: 20.0}}"
        )
        expected = config_from_parameters({"sync.max_wait_ms": 20.0, "planning.speed_limit": 9.0})
        assert load_config(write(tmp_path, text)) == expected

    @pytest.mark.parametrize("text", ["", "{}", "perception_node: {ros__parameters: }", "use_sim_time: true"])
    def test_file_without_parameters_gives_the_defaults(self, tmp_path: Path, text: str) -> None:
        assert load_config(write(tmp_path, text)) == StackConfig()

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("sync: {max_wait: 1}", "unknown parameter 'sync.max_wait'"),
            ("sink: {max_wait_ms: 1}", "unknown parameter 'sink'"),
            ("perception_node: {ros__parameters: {sync.max_wait: 1}}", "unknown parameter 'sync.max_wait'"),
            ("sync: {max_wait_ms: '20'}", "sync.max_wait_ms = '20'"),
            ("sync: {max_wait_ms: 1.0e+9}", "sync.max_wait_ms = .*less than or equal to 1000"),
            ("sync: 3\nsync.max_wait_ms: 20", "sync = 3"),
            ("- 1", "holds a list, expected a mapping"),
            ("sync: [", "is not valid YAML"),
            ("perception_node: {ros__parameters: [1]}", "perception_node is a list, expected a mapping"),
            (
                "a: {ros__parameters: {}}\nb: {ros__parameters: {}}",
                "has parameters for a, b; expected one `perception_node`",
            ),
            (
                "/a/perception_node: {ros__parameters: {}}\n/b/perception_node: {ros__parameters: {}}",
                "expected one `perception_node`",
            ),
        ],
    )
    def test_file_that_is_wrong_is_refused_with_its_name(self, tmp_path: Path, text: str, error: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(ConfigError, match=error) as raised:
            load_config(path)
        assert str(path) in str(raised.value)

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read .*none.yaml: No such file"):
            load_config(tmp_path / "none.yaml")

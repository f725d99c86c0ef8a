"""Everything that can be tuned, in one tree of frozen models.

A field carries its description, unit, bounds and whether it may change while running. The node's ROS
parameters, `docs/parameters.md` and the commands' help are generated from here; nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.trigger_rules import trigger_rules

ParameterValue = bool | int | float | str | list[str]


class Section(BaseModel):
    """A frozen group of tunables; unknown keys are refused."""

    # Ints are welcome where floats are meant (YAML's `1`), strings never are.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def tunable(
    default: Any,
    description: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    read_only: bool = False,
) -> Any:
    """A field with everything a ROS parameter descriptor needs."""
    extra: dict[str, Any] = {"unit": unit, "read_only": read_only}
    return Field(default, description=description, ge=ge, le=le, json_schema_extra=extra)


class EngineConfig(Section):
    """Which bundle runs on which inference backend."""

    # Changed while running, the new engine is loaded beside the old one, which goes on until it is warm.
    bundle: str = tunable(
        "tiny",
        "Bundle directory, or the name of a bundle shipped in resource/bundles.",
    )
    backend: Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime", "torch"] = tunable(
        "onnxruntime",
        "Inference backend; `auto` takes the best that runs here and says which.",
    )
    precision: Literal["float32", "float16", "bfloat16"] = tunable(
        "float32",
        "Of convolutions and linear layers; half precision is for the TensorRT backends.",
    )
    optimization_level: int = tunable(
        3,
        "How long TensorRT searches for fast kernels: 0 compiles fastest, 5 searches longest.",
        ge=0,
        le=5,
    )
    workspace_mib: int = tunable(
        0,
        "Most scratch memory of one of TensorRT's kernels; 0 leaves it to the library.",
        unit="MiB",
        ge=0,
        le=65536,
    )
    weak_types: bool = tunable(
        False,
        "TensorRT 10 alone: let it choose the precision of what directly follows layers of half precision.",
    )
    cache_directory: str = tunable(
        "",
        "Where compiled engines are kept; empty: ~/.cache/e2e_perception/engines.",
    )
    device: Literal["cpu", "cuda"] = tunable(
        "cpu",
        "Where `onnxruntime` runs; `cuda` needs its GPU package and never becomes `cpu`.",
    )
    num_threads: int = tunable(
        2,
        "Threads of the engine; 0 leaves it to the library, -1 times a few frames with each number and keeps "
        "the best.",
        ge=-1,
        le=64,
    )
    allow_spinning: bool = tunable(
        False,
        "Whether the engine's threads wait busily within a frame: ready sooner, but they take cores for it.",
    )
    accept_mismatch: bool = tunable(
        False,
        "Run an engine that differs from torch beyond tolerance all the same; the health topic then says so.",
    )


class SyncConfig(Section):
    """How messages become frames."""

    policy: Literal["anchor", "approximate", "exact"] = tunable(
        "anchor",
        "`anchor` is the project's FrameAssembler; the others use message_filters where installed.",
        read_only=True,
    )
    anchors: list[str] = tunable(
        [],
        "Sensors that may define the frame time, best first; empty: lidars, then cameras.",
        read_only=True,
    )
    max_wait_ms: float = tunable(
        60.0, "How long a frame waits for late sensors after its anchor arrived.", unit="ms", ge=0, le=1000
    )
    anchor_timeout_ms: float = tunable(
        250.0, "Silence of the anchor after which the next one takes over.", unit="ms", ge=20, le=5000
    )
    queue_size: int = tunable(
        16, "Messages kept per sensor; the oldest is dropped first.", ge=2, le=256, read_only=True
    )


class EgoMotionConfig(Section):
    """What counts as continuous odometry."""

    max_gap_ms: float = tunable(
        300.0, "Longest gap that is interpolated across.", unit="ms", ge=10, le=2000, read_only=True
    )
    max_extrapolation_ms: float = tunable(
        150.0,
        "How far past the newest sample a pose is predicted.",
        unit="ms",
        ge=0,
        le=1000,
        read_only=True,
    )
    max_speed: float = tunable(
        80.0, "Motion faster than this is a jump.", unit="m/s", ge=1, le=200, read_only=True
    )


class PreprocessConfig(Section):
    """From messages to tensors."""

    lidar_min_range: float = tunable(
        1.5, "Nearer lidar points are dropped (the robot's own body).", unit="m", ge=0, le=10
    )
    radar_min_speed: float = tunable(
        0.0, "Radar returns slower over ground than this are dropped.", unit="m/s", ge=0, le=10
    )


class TrackingConfig(Section):
    """Life of a track."""

    birth_score: float = tunable(0.5, "Class score at which a detection may start a track.", ge=0.01, le=1)
    keep_score: float = tunable(0.15, "Class score at which a detection may continue a track.", ge=0.01, le=1)
    min_affinity: float = tunable(0.05, "Least association probability of a match.", ge=0.0, le=1)
    max_match_distance: float = tunable(
        6.0, "Farthest match from the predicted position.", unit="m", ge=0.5, le=50
    )
    confirm_hits: int = tunable(3, "Matches until a track is confirmed.", ge=1, le=20)
    max_coast_ms: float = tunable(800.0, "How long a confirmed track lives unseen.", unit="ms", ge=0, le=5000)


class PlanningConfig(Section):
    """Weights of the plan selector; change them live to change the robot's character."""

    weight_imitation: float = tunable(1.0, "Weight of `imitation`, negative log probability.", ge=0, le=100)
    weight_collision: float = tunable(
        50.0, "Weight of `collision`, expected share of the plan's time lost to one.", ge=0, le=1000
    )
    weight_drivable: float = tunable(10.0, "Weight of `drivable`, leaving the road.", ge=0, le=100)
    weight_comfort: float = tunable(0.03, "Weight of `comfort`, acceleration and jerk.", ge=0, le=100)
    weight_progress: float = tunable(
        1.0, "Weight of `progress`, distance short of the speed limit.", ge=0, le=100
    )
    weight_route: float = tunable(0.1, "Weight of `route`, distance from the route.", ge=0, le=100)
    speed_limit: float = tunable(
        25.0,
        "Speed to aim at and not to exceed; proposals above it pay for every m/s.",
        unit="m/s",
        ge=0,
        le=60,
    )
    stickiness: float = tunable(0.1, "Cost per metre of mean deviation from the previous plan.", ge=0, le=10)
    assume_straight_route: bool = tunable(
        True,
        "Without a route, assume straight ahead and say so; false: no plan without a route.",
    )


class SupervisorConfig(Section):
    """When the stack stops trusting itself."""

    max_sensor_age_ms: float = tunable(
        400.0, "Age of a sensor's data when the plan leaves; more is degraded.", unit="ms", ge=10, le=5000
    )
    max_latency_ms: float = tunable(
        200.0, "From the frame's stamp to the plan; more is degraded.", unit="ms", ge=10, le=5000
    )
    silence_ms: float = tunable(
        1000.0, "Time without a valid frame until a minimal-risk stop.", unit="ms", ge=50, le=10000
    )
    engine_timeout_ms: float = tunable(
        1000.0,
        "An engine that has not answered for so long gets a minimal-risk stop in its place.",
        unit="ms",
        ge=50,
        le=60000,
    )
    load_timeout_s: float = tunable(
        600.0,
        "An engine that is not ready after so long is given up; the one before goes on, if there is one.",
        unit="s",
        ge=1,
        le=7200,
    )
    recovery_frames: int = tunable(10, "Good frames until the state improves by one step.", ge=1, le=200)
    max_bad_frames: int = tunable(
        3, "Unusable or far too late frames in a row until a minimal-risk stop.", ge=1, le=50
    )
    stop_deceleration: float = tunable(
        3.0, "Deceleration of the minimal-risk stop.", unit="m/s^2", ge=0.5, le=9
    )
    max_lateral_acceleration: float = tunable(
        6.0, "Plans that turn harder are replaced by a stop.", unit="m/s^2", ge=0.5, le=12
    )
    max_deceleration: float = tunable(
        9.0, "Plans that brake harder are replaced by a stop.", unit="m/s^2", ge=1, le=12
    )
    collision_horizon_s: float = tunable(
        1.5, "A plan that meets a confirmed track within this time is replaced by a stop.",
        unit="s", ge=0, le=4,
    )  # fmt: skip


class TriggersConfig(Section):
    """Which moments the robot keeps as short recordings, see docs/data.md; without rules none."""

    rules: list[str] = tunable(
        [],
        "Each a YAML mapping such as `{name: cyclist, when: tracks.cyclist >= 1 and speed > 3, "
        "cooldown_s: 60, per_hour: 6, per_day: 50, priority: 2}`; empty: nothing is kept.",
        read_only=True,
    )
    directory: str = tunable("", "Where snippets are kept; needed where there are rules.", read_only=True)
    before_s: float = tunable(5.0, "Kept from before an event.", unit="s", ge=0, le=120, read_only=True)
    after_s: float = tunable(5.0, "Kept from after an event.", unit="s", ge=0, le=120, read_only=True)
    longest_s: float = tunable(
        60.0, "Longest snippet; events that overlap share one.", unit="s", ge=10, le=600, read_only=True
    )
    hysteresis: float = tunable(
        0.1, "A condition is over once a number is past its limit by this share of it.", ge=0, le=1,
        read_only=True,
    )  # fmt: skip
    memory_mb: int = tunable(
        256, "Messages that are remembered, and at most as many again that wait for the disk.",
        unit="MB", ge=1, le=65536, read_only=True,
    )  # fmt: skip
    quota_mb: int = tunable(
        20000, "Of all snippets in the directory; the oldest of the least priority make room.",
        unit="MB", ge=1, le=100_000_000, read_only=True,
    )  # fmt: skip

    @field_validator("rules")
    @classmethod
    def _are_rules(cls, value: list[str]) -> list[str]:
        trigger_rules(value)
        return value

    @model_validator(mode="after")
    def _is_long_enough(self) -> TriggersConfig:
        if self.before_s + self.after_s > self.longest_s:
            raise ValueError(
                f"before_s {self.before_s:g} and after_s {self.after_s:g} are together more than longest_s "
                f"{self.longest_s:g}; make that longer"
            )
        return self


class NodeConfig(Section):
    """What concerns the ROS node alone."""

    rig: str = tunable("tiny", "Rig file, or the name of a rig shipped in config/rigs.", read_only=True)
    sensor_topics: list[str] = tunable(
        [],
        "Topics in place of the rig's, each as `sensor:=/topic`, e.g. `front:=/camera/image_raw`.",
        read_only=True,
    )
    sensor_reliability: Literal["auto", "best_effort", "reliable"] = tunable(
        "auto",
        "Subscribe to sensors best effort or reliable; `auto`: reliable where every publisher offers it.",
        read_only=True,
    )
    publish_candidates: bool = tunable(False, "Publish all plan proposals (PlanCandidates).")
    publish_markers: bool = tunable(True, "Publish MarkerArray and Path for RViz and Foxglove.")
    max_rate_hz: float = tunable(
        0.0, "Frames above this rate are dropped and counted; 0: no limit.", unit="Hz", ge=0, le=100
    )
    prepare_threads: int = tunable(
        1,
        "Threads of OpenCV, which decodes and scales pictures, in the node's process; 0: as many as cores.",
        ge=0,
        le=64,
    )
    use_tf: bool = tunable(True, "Take sensor poses from /tf_static where it has them.", read_only=True)
    use_camera_info: bool = tunable(True, "Take intrinsics from CameraInfo where it comes.", read_only=True)


class StackConfig(Section):
    """The whole tree; each leaf is one parameter named `section.field`."""

    engine: EngineConfig = Field(default_factory=EngineConfig)
    sync: SyncConfig = Field(default_factory=SyncConfig)
    ego_motion: EgoMotionConfig = Field(default_factory=EgoMotionConfig)
    preprocess: PreprocessConfig = Field(default_factory=PreprocessConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    planning: PlanningConfig = Field(default_factory=PlanningConfig)
    supervisor: SupervisorConfig = Field(default_factory=SupervisorConfig)
    triggers: TriggersConfig = Field(default_factory=TriggersConfig)
    node: NodeConfig = Field(default_factory=NodeConfig)


@dataclass(frozen=True)
class ParameterSpec:
    """One leaf of the tree, as a ROS parameter descriptor wants it.

    Attributes:
        name: `section.field`.
        kind: `bool`, `integer`, `double`, `string` or `string_array`.
        default: Its value in a default `StackConfig`.
        description, unit: For people.
        minimum, maximum: Inclusive bounds, or None.
        choices: Allowed strings, or empty.
        read_only: Fixed once the node is configured.
    """

    name: str
    kind: Literal["bool", "integer", "double", "string", "string_array"]
    default: ParameterValue
    description: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    read_only: bool


def _bound(info: FieldInfo, attribute: str) -> float | None:
    for constraint in info.metadata:
        value = getattr(constraint, attribute, None)
        if value is not None:
            return float(value)
    return None


def section_specs(section: type[Section], prefix: str = "") -> Iterator[ParameterSpec]:
    """The tunables of one section, in file order, their names behind a prefix."""
    for name, info in section.model_fields.items():
        annotation = info.annotation
        choices: tuple[str, ...] = ()
        kind: Literal["bool", "integer", "double", "string", "string_array"]
        if get_origin(annotation) is Literal:
            kind, choices = "string", tuple(get_args(annotation))
        elif annotation is bool:
            kind = "bool"
        elif annotation is int:
            kind = "integer"
        elif annotation is float:
            kind = "double"
        elif annotation is str:
            kind = "string"
        else:
            kind = "string_array"
        extra = info.json_schema_extra
        assert isinstance(extra, dict) and info.description
        yield ParameterSpec(
            name=f"{prefix}{name}",
            kind=kind,
            default=info.default,
            description=info.description,
            unit=str(extra["unit"]),
            minimum=_bound(info, "ge"),
            maximum=_bound(info, "le"),
            choices=choices,
            read_only=bool(extra["read_only"]),
        )


def parameter_specs() -> Iterator[ParameterSpec]:
    """Every tunable of the stack, in file order."""
    for section_name, section_info in StackConfig.model_fields.items():
        section = section_info.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        yield from section_specs(section, f"{section_name}.")


_Model = TypeVar("_Model", bound=Section)


def validated(model: type[_Model], document: Any, origin: str) -> _Model:
    """A section from nested values.

    Raises:
        ConfigError: If a name is unknown or a value wrong, with `origin` in front and each named.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown parameter {name!r}; `docs/parameters.md` lists all of them")
        else:
            parts.append(f"{name} = {item['input']!r}: {item['msg']}")
    return "; ".join(parts)


def config_from_parameters(
    values: Mapping[str, ParameterValue | tuple[str, ...]], base: StackConfig | None = None
) -> StackConfig:
    """Build the tree from flat `section.field` values on top of `base` (default: all defaults).

    Raises:
        ConfigError: For an unknown name, a wrong type or a value out of range, naming each.
    """
    document = (base or StackConfig()).model_dump()
    for name, value in values.items():
        section, _, leaf = name.partition(".")
        if section not in document or leaf not in document[section]:
            raise ConfigError(f"unknown parameter {name!r}; `docs/parameters.md` lists all of them")
        document[section][leaf] = list(value) if isinstance(value, tuple) else value
    return validated(StackConfig, document, "parameters")


def load_config(path: str | Path) -> StackConfig:
    """Read a ROS 2 parameter file (`node: ros__parameters: …`) or the bare tree, from YAML.

    Args:
        path: File; of a ROS parameter file the entries for `/**` and `perception_node` are taken, the latter
            winning, or that of the single node in it. Nested and dotted names are both understood.
    Raises:
        ConfigError: If the file is missing, not YAML, or a parameter is unknown or out of range.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a {type(document).__name__}, expected a mapping")
    nested: dict[str, Any] = {}
    for parameters in _ros_entries(document, path) or [document]:
        for key, value in parameters.items():
            if key == "use_sim_time":
                continue
            section, _, leaf = str(key).partition(".")
            leaves = {leaf: value} if leaf else value
            known = nested.setdefault(section, {})
            if isinstance(known, dict) and isinstance(leaves, dict):
                known.update(leaves)
            elif isinstance(known, dict):
                nested[section] = leaves  # no section; the validation says so
    return validated(StackConfig, nested, str(path))


def _ros_entries(document: dict[Any, Any], path: Path) -> list[dict[Any, Any]]:
    """Parameters that a ROS parameter file has for the perception node, general ones first."""
    entries = {
        str(key): value["ros__parameters"] or {}
        for key, value in document.items()
        if isinstance(value, dict) and "ros__parameters" in value
    }
    named = [key for key in entries if key.rpartition("/")[2] == "perception_node"]
    chosen = [key for key in ("/**", *named) if key in entries] or list(entries)
    if len(named) > 1 or (not named and "/**" not in entries and len(entries) > 1):
        raise ConfigError(
            f"{path} has parameters for {', '.join(entries)}; expected one `perception_node` or `/**`"
        )
    for key in chosen:
        if not isinstance(entries[key], dict):
            raise ConfigError(
                f"{path}: ros__parameters of {key} is a {type(entries[key]).__name__}, expected a mapping"
            )
    return [entries[key] for key in chosen]

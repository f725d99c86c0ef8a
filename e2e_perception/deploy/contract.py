"""The tensor contract: every input and output of the engine by name, shape, type and unit.

Derived from `NetworkConfig` alone, so the exporter, every engine, the preprocessor and the bundle agree
by construction. Legend: N cameras, L lidars, R radars, M remembered tracks, Q detections, O = Q + M
objects (detections first), K classes, F futures per object, S horizon steps, P plan proposals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import ContractError
from e2e_perception.core.network_config import (
    BOX_FIELDS,
    BOX_STD_FIELDS,
    COST_TERMS,
    EGO_FIELDS,
    LIDAR_CHANNELS,
    RADAR_CHANNELS,
    NetworkConfig,
)
from e2e_perception.core.trajectories import ROUTE_POINTS

CONTRACT_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor with a batch of one in front."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str


@dataclass(frozen=True)
class TensorContract:
    """All inputs and outputs, in graph order, and which output feeds which input back."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    # Device-resident recurrent state: output name -> input name of the next call.
    state: tuple[tuple[str, str], ...]
    version: int = CONTRACT_VERSION

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names in graph order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names in graph order."""
        return tuple(spec.name for spec in self.outputs)

    def check_inputs(self, tensors: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise `ContractError` unless the host-fed tensors match the contract (state may be absent)."""
        fed_back = {target for _, target in self.state}
        for spec in self.inputs:
            if spec.name in fed_back and spec.name not in tensors:
                continue
            if spec.name not in tensors:
                raise ContractError(
                    f"engine input {spec.name!r} is missing; expected {spec.dtype}{list(spec.shape)}"
                )
            got = tensors[spec.name]
            if not isinstance(got, np.ndarray):
                raise ContractError(
                    f"engine input {spec.name!r} is a {type(got).__name__}, "
                    f"expected a numpy array {spec.dtype}{list(spec.shape)}"
                )
            if tuple(got.shape) != spec.shape or str(got.dtype) != spec.dtype:
                raise ContractError(
                    f"engine input {spec.name!r} is {got.dtype}{list(got.shape)}, "
                    f"expected {spec.dtype}{list(spec.shape)}"
                )
        unknown = sorted(set(tensors) - set(self.input_names))
        if unknown:
            raise ContractError(f"engine has no input {', '.join(map(repr, unknown))}")

    def to_json(self) -> dict[str, object]:
        """A plain description for `bundle.json`."""

        def rows(specs: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
            return [
                {"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "meaning": s.meaning}
                for s in specs
            ]

        return {
            "version": self.version,
            "inputs": rows(self.inputs),
            "outputs": rows(self.outputs),
            "state": [list(pair) for pair in self.state],
        }

    def difference(self, described: Mapping[str, object]) -> str | None:
        """The first way in which a bundle's description differs from this contract, or None."""
        own = self.to_json()
        if described.get("version") != own["version"]:
            return f"contract version {described.get('version')!r}, expected {own['version']!r}"
        for side in ("inputs", "outputs"):
            mine = {str(row["name"]): row for row in own[side]}  # type: ignore[attr-defined]
            rows = described.get(side)
            if not isinstance(rows, list):
                return f"contract has no list of {side}"
            theirs = {str(row.get("name")): row for row in rows if isinstance(row, dict)}
            for name in [*mine, *theirs]:
                if name not in theirs:
                    return f"{side[:-1]} {name!r} is missing"
                if name not in mine:
                    return f"{side[:-1]} {name!r} is unknown"
                for key in ("shape", "dtype"):
                    if theirs[name].get(key) != mine[name][key]:
                        return (
                            f"{side[:-1]} {name!r} has {key} {theirs[name].get(key)}, "
                            f"expected {mine[name][key]}"
                        )
        if described.get("state") != own["state"]:
            return f"recurrent state {described.get('state')!r}, expected {own['state']!r}"
        return None


def tensor_contract(config: NetworkConfig) -> TensorContract:
    """The contract of a network size."""
    y, x = config.grid.shape
    yb, xb = config.bev_grid.shape
    n, m, q = len(config.cameras), config.num_memory, config.num_queries
    o, k, p = q + m, len(CLASSES), config.num_plans
    f, s, d = config.num_modes, config.horizon_steps, config.token_channels

    def tensor(name: str, shape: tuple[int, ...], meaning: str, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name, (1, *shape), dtype, meaning)

    image_shape = (n, config.image_height, config.image_width, 3)
    memory_shape = (config.bev_channels, yb, xb)
    box_columns = " ".join(BOX_FIELDS)
    return TensorContract(
        inputs=(
            tensor("images", image_shape, "RGB, not normalised", "uint8"),
            tensor("image_from_base", (n, 3, 4), "projection to pixels of `images`, at frame time"),
            tensor("camera_valid", (n,), "1 valid, 0 absent or stale"),
            tensor("lidar_raster", (len(LIDAR_CHANNELS), y, x), " ".join(LIDAR_CHANNELS)),
            tensor("lidar_valid", (len(config.lidars),), "1 or 0"),
            tensor("radar_raster", (len(RADAR_CHANNELS), y, x), " ".join(RADAR_CHANNELS)),
            tensor("radar_valid", (len(config.radars),), "1 or 0"),
            tensor("ego_state", (len(EGO_FIELDS),), " ".join(EGO_FIELDS) + "; SI"),
            tensor("route", (ROUTE_POINTS, 4), "x y tangent_x tangent_y every 3 m, base frame [m]"),
            tensor("bev_theta", (2, 3), "affine sampling of bev_memory, see BevGrid.sampling_theta"),
            tensor("memory_valid", (1,), "1 if bev_memory and bev_theta may be used"),
            tensor("track_tokens", (m, d), "tokens of remembered tracks"),
            tensor("track_boxes", (m, len(BOX_FIELDS)), f"{box_columns}; moved to this frame"),
            tensor("track_valid", (m,), "1 for a remembered track, 0 for padding"),
            tensor("bev_memory", memory_shape, "bev_memory_next of the previous call"),
        ),
        outputs=(
            tensor("query_scores", (q, k), "probability per class"),
            tensor("query_boxes", (q, len(BOX_FIELDS)), f"{box_columns}; base frame [m] [m/s]"),
            tensor("query_log_var", (q, len(BOX_STD_FIELDS)), "log variance of x y vx vy"),
            tensor("query_tokens", (q, d), "tokens after soft association, to remember"),
            tensor(
                "affinity",
                (m + 1, q + 1),
                "log probability: rows tracks then `new`; columns detections then `gone`",
            ),
            tensor("object_modes", (o, f), "probability of each future"),
            tensor("object_futures", (o, f, s, 2), "positions [m], base frame"),
            tensor("object_futures_log_var", (o, f, s, 2), "log variance [log m^2]"),
            tensor("plan_sd", (p, s, 2), "proposals in route coordinates [m]"),
            tensor("plan_costs", (p, len(COST_TERMS)), " ".join(COST_TERMS) + "; unweighted"),
            tensor("heatmap", (k, yb, xb), "probability of a centre per class"),
            tensor(
                "bev_maps",
                (5, yb, xb),
                "probability of drivable, boundary, occupied; flow x, y [m/s]",
            ),
            tensor("bev_memory_next", memory_shape, "to remember"),
        ),
        state=(("bev_memory_next", "bev_memory"),),
    )

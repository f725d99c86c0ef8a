from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from e2e_perception.core.clips import ARRAY_FIELDS, MAX_LABELS, Clip
from e2e_perception.core.errors import InputError


def fields(num_frames: int = 3, steps: int = 8) -> dict[str, Any]:
    t, b, s = num_frames, MAX_LABELS, steps
    return {
        "inputs": {"images": np.zeros((t, 3, 4, 4, 3), np.uint8), "lidar_valid": np.ones((t, 1), np.float32)},
        "boxes_TB10": np.zeros((t, b, 10), np.float32),
        "class_ids_TB": np.zeros((t, b), np.int64),
        "ids_TB": np.full((t, b), -1, np.int64),
        "weights_TB": np.zeros((t, b), np.float32),
        "visible_TB": np.zeros((t, b), bool),
        "futures_TBS2": np.zeros((t, b, s, 2), np.float32),
        "futures_valid_TBS": np.zeros((t, b, s), bool),
        "ego_future_TS3": np.zeros((t, s, 3), np.float32),
        "ego_future_valid_TS": np.zeros((t, s), bool),
        "maps_T2YX": np.zeros((t, 2, 8, 8), np.uint8),
        "maps_valid": True,
        "stamps_ns_T": np.arange(t, dtype=np.int64) * 100_000_000,
        "memory_from_base_T3": np.zeros((t, 3)),
        "source": "simulation",
        "scenario": "cut_in:7",
    }


def test_length_is_the_number_of_frames() -> None:
    assert len(Clip(**fields(5))) == 5


def test_arrays_name_every_array_once_with_inputs_prefixed() -> None:
    given = fields()
    arrays = Clip(**given).arrays()
    assert set(arrays) == {"inputs/images", "inputs/lidar_valid", *ARRAY_FIELDS}
    assert set(ARRAY_FIELDS) == {name for name, value in given.items() if isinstance(value, np.ndarray)}
    assert arrays["inputs/images"] is given["inputs"]["images"]


@pytest.mark.parametrize("name", [name for name in ARRAY_FIELDS if name != "stamps_ns_T"])
def test_array_of_another_length_is_refused_by_name(name: str) -> None:
    given = fields()
    given[name] = given[name][:2]
    with pytest.raises(InputError, match=f"{name} has 2 frames, expected 3 as the stamps"):
        Clip(**given)


def test_input_of_another_length_is_refused_by_name() -> None:
    given = fields()
    given["inputs"]["images"] = given["inputs"]["images"][:1]
    with pytest.raises(InputError, match="inputs/images has 1 frames, expected 3"):
        Clip(**given)

"""Near duplicates: noise and compression do not hide one, another scene is none, and none is missed."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.clips import Clip
from e2e_perception.data.near_duplicates import TOLERANCE, HashIndex, perceptual_hash

NUM_BITS = 126


def textured(seed: int) -> Clip:
    """The synthetic clip with pictures that have a low-frequency content of their own."""
    clip = synthetic_clip(SMALL, seed=seed)
    noise = np.random.default_rng(seed).normal(size=(3, 64, 96)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(picture, (0, 0), 6.0) for picture in noise])
    grey = np.clip(128 + 400 * smooth, 0, 255).astype(np.uint8)
    images = np.broadcast_to(grey[None, ..., None], clip.inputs["images"].shape).copy()
    return replace(clip, inputs={**clip.inputs, "images": images})


def bits(clip: Clip) -> np.ndarray:
    found = perceptual_hash(clip)
    assert found is not None and found.shape == (NUM_BITS,)
    return found


def test_noise_and_jpeg_are_within_the_tolerance_and_other_scenes_beyond() -> None:
    rng, hashes = np.random.default_rng(0), [bits(textured(seed)) for seed in range(20)]
    for seed in range(20):
        clip = textured(seed)
        images = clip.inputs["images"]
        noisy = np.clip(images + rng.normal(0.0, 6.0, images.shape), 0, 255).astype(np.uint8)
        pressed = images.copy()
        for n in range(3):
            pressed[0, n] = cv2.imdecode(cv2.imencode(".jpg", images[0, n])[1], cv2.IMREAD_COLOR)
        for other in (noisy, pressed):
            assert (
                bits(replace(clip, inputs={**clip.inputs, "images": other})) != hashes[seed]
            ).sum() <= TOLERANCE
    gaps = [int((a != b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(gaps) > TOLERANCE + 5  # half of the bits are of lidar rasters that are nearly the same


@given(seed=st.integers(0, 10_000), count=st.integers(0, TOLERANCE + 6))
@settings(max_examples=100)
def test_whatever_bits_differ_the_index_finds_what_comparing_all_finds(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.random((30, NUM_BITS)) < 0.5
    index = HashIndex()
    for k, row in enumerate(hashes):
        index.add(row, (str(k),))
    asked = hashes[rng.integers(30)].copy()
    asked[rng.choice(NUM_BITS, count, replace=False)] ^= True
    gaps = (hashes != asked).sum(axis=1)
    expected = (int(gaps.min()), (str(int(gaps.argmin())),)) if gaps.min() <= TOLERANCE else None
    assert index.nearest(asked) == expected


def test_clips_without_sensors_are_not_alike() -> None:
    clip = synthetic_clip(SMALL)
    dead = {name: np.zeros_like(clip.inputs[name]) for name in ("camera_valid", "lidar_valid")}
    assert perceptual_hash(replace(clip, inputs={**clip.inputs, **dead})) is None


@given(seed=st.integers(0, 10_000), count=st.integers(0, TOLERANCE), absent=st.sampled_from([0, 1]))
@settings(max_examples=100)
def test_without_one_sensor_half_as_many_bits_may_differ(seed: int, count: int, absent: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.random((30, 2, NUM_BITS // 2)) < 0.5
    hashes[:, absent] = False
    index = HashIndex()
    for k, row in enumerate(hashes):
        index.add(row.ravel(), (str(k),))
    asked = hashes[rng.integers(30)].copy()
    asked[1 - absent, rng.choice(NUM_BITS // 2, count, replace=False)] ^= True
    gaps = (hashes != asked).sum(axis=(1, 2))
    near = gaps.min() <= TOLERANCE // 2
    expected = (int(gaps.min()), (str(int(gaps.argmin())),)) if near else None
    assert index.nearest(asked.ravel()) == expected


def test_clips_without_a_camera_are_not_compared_with_all_others() -> None:
    rng = np.random.default_rng(0)
    hashes = np.concatenate([np.zeros((400, NUM_BITS // 2), bool), rng.random((400, NUM_BITS // 2)) < 0.5], 1)
    index = HashIndex()
    compared = 0

    def look(_name: tuple[str, ...]) -> bool:
        nonlocal compared
        compared += 1
        return True

    for k, row in enumerate(hashes):
        index.nearest(row, look)
        index.add(row, (str(k),))
    # Of 79800 pairs about 6 in 2 ** 10.5 share a band of 10 or 11 bits.
    assert 0 < compared < 1000


def test_what_is_the_same_everywhere_is_like_nothing() -> None:
    index = HashIndex()
    index.add(np.zeros(NUM_BITS, bool), ("blank",))
    assert index.nearest(np.zeros(NUM_BITS, bool)) is None

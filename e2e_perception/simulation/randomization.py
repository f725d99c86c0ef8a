"""Relatives of a rig for training: other beams, mounts and lenses.

Domain randomisation (Tobin et al., IROS 2017), for sensors that nobody modelled.
"""

from __future__ import annotations

import numpy as np

from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar, Rig
from e2e_perception.runtime.preprocess import ImageCrop


def network_sized(camera: Camera, network: NetworkConfig) -> Camera:
    """The camera as the network sees it, so that pictures can be rendered at that size at once.

    The preprocessor cuts and scales the real camera's pictures; for this one it has nothing left to do.
    """
    seen = ImageCrop.of(camera, network).network_from_camera @ camera.intrinsics
    return camera.model_copy(
        update={
            "width": network.image_width,
            "height": network.image_height,
            "fx_px": float(seen[0, 0]),
            "fy_px": float(seen[1, 1]),
            "cx_px": float(seen[0, 2]),
            "cy_px": float(seen[1, 2]),
        }
    )


def randomized_rig(rig: Rig, rng: np.random.Generator) -> Rig:
    """A relative of the rig.

    Args:
        rig: Where to start from; cameras already `network_sized`.
        rng: Randomness.
    Returns:
        Mounts moved (now and then far back, as on cars whose base frame is not at the rear axle), lenses 15 %
        wider to 50 % longer, lidars with 16 to 64 beams and more or less dropout and noise.
    """
    lift = rng.uniform(-0.15, 0.15)
    back = rng.uniform(0.3, 1.4) if rng.random() < 0.3 else 0.0
    sensors = tuple(_varied(sensor, lift, back, rng) for sensor in rig.sensors)
    return rig.model_copy(update={"sensors": sensors})


def _varied(
    sensor: Camera | Lidar | Radar, lift: float, back: float, rng: np.random.Generator
) -> Camera | Lidar | Radar:
    x, y, z = sensor.mount.xyz
    roll, pitch, yaw = sensor.mount.rpy_deg
    if isinstance(sensor, Camera):
        zoom = rng.uniform(1.2, 1.5) if rng.random() < 0.2 else rng.uniform(0.85, 1.2)
        return sensor.model_copy(
            update={
                "mount": Mount(
                    xyz=(x - back + rng.normal(0, 0.1), y, z + lift + rng.normal(0, 0.05)),
                    rpy_deg=(roll + rng.normal(0, 0.4), pitch + rng.normal(0, 0.8), yaw + rng.normal(0, 2.0)),
                ),
                "fx_px": sensor.fx_px * zoom,
                "fy_px": sensor.fy_px * zoom,
                "cx_px": sensor.cx_px + rng.normal(0, 0.012) * sensor.width,
                "cy_px": sensor.cy_px + rng.normal(0, 0.04) * sensor.height,
            }
        )
    if isinstance(sensor, Lidar):
        num_beams = int(rng.choice([16, 24, 32, 32, 40, 64]))
        # About as many rays for every number of beams, so that none costs more; sometimes twice as many.
        step_deg = 0.25 * max(1.0, num_beams / 20.0) * rng.uniform(0.8, 1.2)
        return sensor.model_copy(
            update={
                "mount": Mount(
                    xyz=(x - back + rng.normal(0, 0.2), y, z + lift),
                    rpy_deg=(roll + rng.normal(0, 0.3), pitch + rng.normal(0, 0.4), yaw),
                ),
                "num_beams": num_beams,
                "elevation_min_deg": rng.uniform(-26.0, -16.0),
                "elevation_max_deg": rng.uniform(2.0, 8.0),
                "azimuth_step_deg": step_deg / (2.0 if rng.random() < 0.1 else 1.0),
                "dropout": rng.uniform(0.0, 0.2),
                "range_noise": rng.uniform(0.01, 0.05),
            }
        )
    mount = Mount(xyz=(x - back, y, z), rpy_deg=(roll, pitch, yaw + rng.normal(0, 1.0)))
    return sensor.model_copy(update={"mount": mount, "clutter": sensor.clutter * rng.uniform(0.3, 2.0)})

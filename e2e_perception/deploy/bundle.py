"""Bundles: what goes to the robot, checked whole before any of it is used.

bundle.json         schema, contract, network, rig, classes, cost weights, provenance, metrics
model.onnx          the graph, one self-contained file
weights.safetensors the same weights for the torch backend and for further training
evaluation.json     measured figures
MODEL_CARD.md       for people
rollout.npz         optional: frames, and what torch made of them, see `rollouts.py`
SHA256SUMS          of every file above
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import BundleError
from e2e_perception.core.network_config import COST_TERMS, NetworkConfig
from e2e_perception.core.resources import resource_dir
from e2e_perception.core.rig import Rig
from e2e_perception.deploy.contract import TensorContract, tensor_contract

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
CHECKSUMS = "SHA256SUMS"
EVALUATION = "evaluation.json"
SAME_NETWORK = "same_network_as"  # in the provenance: digests of earlier copies
REQUIRED_FILES = (MANIFEST, "model.onnx", "weights.safetensors", EVALUATION, "MODEL_CARD.md")
ROLLOUT = "rollout.npz"
NOT_CHECKED = "not checked"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file has been checked.

    Attributes:
        path: Its directory.
        name: Name in the manifest.
        digest: SHA-256 of `SHA256SUMS`: identifies the whole content.
        network: Size and slots of the network.
        contract: Derived from it and equal to the manifest's.
        rig: The rig it was trained for.
        manifest: The whole of `bundle.json`.
    """

    path: Path
    name: str
    digest: str
    network: NetworkConfig
    contract: TensorContract
    rig: Rig
    manifest: Mapping[str, Any]

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.path / "model.onnx"

    @property
    def weights_path(self) -> Path:
        """The weights for torch."""
        return self.path / "weights.safetensors"

    @property
    def rollout_path(self) -> Path | None:
        """What torch made of some frames; None in a bundle that records none."""
        path = self.path / ROLLOUT
        return path if path.is_file() else None

    @property
    def precision(self) -> str:
        """Of the graph's convolutions: `float32`, or `int8` if it was quantized."""
        return str(self.manifest.get("precision", "float32"))

    @property
    def cost_weights(self) -> dict[str, float]:
        """Default weights of the planner's terms.

        Raises:
            BundleError: If the manifest does not state them.
        """
        weights = self.manifest.get("cost_weights")
        if not isinstance(weights, dict) or not set(COST_TERMS) <= set(weights):
            raise BundleError(f"{self.path}: cost_weights of {MANIFEST} lack some of {', '.join(COST_TERMS)}")
        return {term: float(weights[term]) for term in COST_TERMS}

    @property
    def digests(self) -> tuple[str, ...]:
        """Its own, and those of earlier copies with the same graph and weights: figures of one are of all."""
        return (self.digest, *self.manifest.get("provenance", {}).get(SAME_NETWORK, ()))

    @property
    def labels(self) -> tuple[str, ...]:
        """What drives call it and its earlier copies: name and the beginning of a digest."""
        return tuple(f"{self.name} {digest[:12]}" for digest in self.digests)

    def __str__(self) -> str:
        return f"{self.name} {self.digest[:12]}"


def find_bundle(path_or_name: str | Path) -> Path:
    """Directory of a bundle given by path, or by the name of one shipped in `resource/bundles`.

    Raises:
        BundleError: If there is none; the message lists the shipped ones.
    """
    path = Path(path_or_name)
    if path.is_dir():
        return path
    shipped = resource_dir() / "bundles"
    if _NAME.match(str(path_or_name)) and (shipped / str(path_or_name)).is_dir():
        return shipped / str(path_or_name)
    names = sorted(p.name for p in shipped.iterdir() if p.is_dir()) if shipped.is_dir() else []
    raise BundleError(
        f"no bundle {str(path_or_name)!r}: neither a directory nor one of the shipped bundles "
        f"({', '.join(names) or 'none'})"
    )


def load_bundle(path_or_name: str | Path) -> Bundle:
    """Open a bundle and check all of it.

    Args:
        path_or_name: As for `find_bundle`.
    Raises:
        BundleError: If a file is missing, unlisted or altered, or the manifest was made for another schema,
            contract or set of classes; one sentence names what differs.
    """
    path = find_bundle(path_or_name)
    sums = _checked_sums(path)
    manifest_path = path / MANIFEST
    if manifest_path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest_path} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB; refused")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{manifest_path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{manifest_path} holds a {type(manifest).__name__}, expected an object")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema version {manifest.get('schema_version')!r}, this release reads "
            f"{SCHEMA_VERSION}; export the bundle again"
        )
    if manifest.get("classes") != list(CLASSES):
        raise BundleError(
            f"{path}: made for classes {manifest.get('classes')!r}, this release has {list(CLASSES)}"
        )
    try:
        network = NetworkConfig.model_validate(manifest.get("network"))
        rig = Rig.model_validate(manifest.get("rig"))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(
            f"{path}: {error.title} in {MANIFEST} is not valid at {where or 'its root'}: "
            f"{error.errors()[0]['msg']}"
        ) from error
    contract = tensor_contract(network)
    described = manifest.get("contract")
    if not isinstance(described, dict):
        raise BundleError(f"{path}: {MANIFEST} states no tensor contract")
    difference = contract.difference(described)
    if difference:
        raise BundleError(f"{path}: made for another tensor contract: {difference}")
    name = manifest.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise BundleError(f"{path}: name {name!r} in {MANIFEST}, expected letters, digits, . _ -")
    return Bundle(path, name, sums, network, contract, rig, manifest)


def _checked_sums(path: Path) -> str:
    """Check every file against SHA256SUMS; returns the digest of that list."""
    listing = path / CHECKSUMS
    if not listing.is_file():
        raise BundleError(f"{path} is not a bundle: it has no {CHECKSUMS}")
    if listing.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{listing} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB; refused")
    raw = listing.read_bytes()
    expected: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not match or not _NAME.match(match[2]):
            raise BundleError(f"{listing} line {number} is not `<sha256>  <file name>`: {line[:80]!r}")
        expected[match[2]] = match[1]
    missing = [name for name in REQUIRED_FILES if name not in expected]
    if missing:
        raise BundleError(f"{listing} does not list {', '.join(missing)}")
    for extra in sorted(p.name for p in path.iterdir()):
        if extra != CHECKSUMS and extra not in expected:
            raise BundleError(f"{path} holds {extra!r}, which {CHECKSUMS} does not list")
    for name, digest in expected.items():
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise BundleError(f"{path}: {name} is listed in {CHECKSUMS} but is not a regular file there")
        got = sha256_of(file)
        if got != digest:
            raise BundleError(
                f"{file} is damaged or was altered: SHA-256 {got[:12]}…, {CHECKSUMS} says {digest[:12]}…; "
                "copy the bundle again"
            )
    return hashlib.sha256(raw).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(path: Path) -> None:
    """Write SHA256SUMS for every file in a bundle directory."""
    lines = [f"{sha256_of(p)}  {p.name}\n" for p in sorted(path.iterdir()) if p.name != CHECKSUMS]
    (path / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def verify_bundle(path_or_name: str | Path) -> list[tuple[str, str]]:
    """Check a bundle; where ONNX Runtime is installed, also its graph against what torch computed.

    Returns:
        (what was checked, what was found) for each check; what was found begins with `NOT_CHECKED` where the
        machine lacks what the check needs.
    Raises:
        BundleError: At the first check that fails.
        EngineMismatchError: If the graph does not give what torch gave in the recorded rollout.
    """
    from e2e_perception.core.config import EngineConfig
    from e2e_perception.core.errors import EngineUnavailableError
    from e2e_perception.deploy.engines import configured_engine
    from e2e_perception.deploy.rollouts import load_rollout

    bundle = load_bundle(path_or_name)
    with tempfile.TemporaryDirectory() as scratch:  # what was found at an earlier time does not count
        config = EngineConfig(backend="onnxruntime", num_threads=1, cache_directory=scratch)
        try:
            engine = configured_engine(bundle, config, lambda sentence: None)
            graph = f"loads, and has the contract's tensors ({engine.info})"
            engine.close()
        except EngineUnavailableError as error:
            graph = f"{NOT_CHECKED}: {error}"
    rollout = "none: engines cannot be checked against torch"
    if bundle.rollout_path is not None:
        recorded = load_rollout(bundle.rollout_path, bundle.network)
        rollout = str(recorded)
    size = sum(p.stat().st_size for p in bundle.path.iterdir())
    return [
        ("checksums", f"{len(list(bundle.path.iterdir())) - 1} files, digest {bundle.digest[:12]}"),
        ("schema", f"version {SCHEMA_VERSION}"),
        ("contract", f"version {bundle.contract.version}, {len(bundle.contract.inputs)} inputs, "
                     f"{len(bundle.contract.outputs)} outputs"),
        ("graph", graph),
        ("recorded rollout", rollout),
        ("classes", ", ".join(CLASSES)),
        ("rig", f"{bundle.rig.name}: {', '.join(s.name for s in bundle.rig.sensors)}"),
        ("size", f"{size / 1e6:.2f} MB"),
    ]  # fmt: skip

"""Errors for users: each message says what was got, what was expected and what to do."""

from __future__ import annotations


class E2EPerceptionError(ValueError):
    """Base of every error that a user can cause and mend; commands turn it into exit code 2."""


class ConfigError(E2EPerceptionError):
    """A configuration file or parameter is unknown, malformed or out of range."""


class RigError(E2EPerceptionError):
    """A rig file is malformed, or disagrees with the robot or with the bundle."""


class InputError(E2EPerceptionError):
    """Sensor data, a bag or a clip is missing, truncated, of the wrong type or not decodable."""


class DamagedBagError(InputError):
    """A recording was cut off or altered; what is whole of it may still be read (`SalvagedBag`)."""


class BundleError(E2EPerceptionError):
    """A bundle is incomplete, damaged, or made for another contract or rig."""


class ContractError(E2EPerceptionError):
    """Tensors do not have the names, shapes or types that the contract states."""


class EngineUnavailableError(E2EPerceptionError):
    """The requested inference backend cannot run here; the message names the reason."""


class EngineMismatchError(E2EPerceptionError):
    """An engine computes something else than the network it was made from; it must not drive."""


class TrainingError(E2EPerceptionError):
    """A training run cannot go on; its last checkpoint is kept."""

"""What torch's ONNX exporter says of itself and not of the network, and nothing more, is not passed on."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The network has none of torchvision's operators; that they are not registered changes nothing.
REGISTRATION = "torch.onnx._internal.exporter._registration"
SKIPPED = "torchvision is not installed. Skipping"
# torch copies its own tree specifications in a way that it calls outdated itself.
LEAF_SPEC = "`isinstance(treespec, LeafSpec)` is deprecated"


@contextmanager
def without_exporter_noise() -> Iterator[None]:
    """Leave out the two messages above; every other warning is as loud as before."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(SKIPPED)

    logger = logging.getLogger(REGISTRATION)
    logger.addFilter(passes)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=re.escape(LEAF_SPEC), category=FutureWarning)
            yield
    finally:
        logger.removeFilter(passes)

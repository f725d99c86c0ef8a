"""zstd and lz4 up to a bound: what a file says of its sizes is not believed.

A hundred kilobytes of zstd can hold three gigabytes of zeros.
"""

from __future__ import annotations

from pathlib import Path

import lz4.frame
import zstandard

from e2e_perception.core.errors import InputError

LARGEST_RECORD = 1 << 28  # [bytes] of a record, and of what a chunk or message unpacks to; more is damage
LARGEST_RATIO = 100  # of a file that was compressed as a whole; what sensors send shrinks to a tenth at best
_BLOCK = 1 << 20  # [bytes] unpacked at a time where only the size is asked for
_PLAIN = (b"\x89MCAP0\r\n", b"SQLite f")


def from_zstd(data: bytes) -> bytes:
    """Unpack zstd frames.

    Raises:
        ValueError: If more than `LARGEST_RECORD` comes of them; no more than that is unpacked.
        zstandard.ZstdError: If they are damaged.
    """
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        return _bounded(reader.read(LARGEST_RECORD + 1))


def from_lz4(data: bytes) -> bytes:
    """Unpack an lz4 frame.

    Raises:
        ValueError: If more than `LARGEST_RECORD` comes of it; no more than that is unpacked.
        RuntimeError: If it is damaged.
    """
    return _bounded(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=LARGEST_RECORD + 1))


def _bounded(data: bytes) -> bytes:
    if len(data) > LARGEST_RECORD:
        raise ValueError(f"it unpacks to more than {LARGEST_RECORD} bytes")
    return data


def check_packed_files(directory: Path) -> None:
    """Refuse a bag whose files, compressed as a whole, unpack to more than a recording would.

    Nothing is kept of what is unpacked. What is no zstd is left to whoever reads the bag.

    Raises:
        InputError: If a file unpacks to more than `LARGEST_RATIO` times its size, and than `LARGEST_RECORD`.
    """
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        largest, unpacked = max(LARGEST_RATIO * file.stat().st_size, LARGEST_RECORD), 0
        with file.open("rb") as stream:
            if stream.read(8) in _PLAIN:
                continue
            stream.seek(0)
            try:
                with zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True) as reader:
                    while unpacked <= largest and (block := reader.read(_BLOCK)):
                        unpacked += len(block)
            except zstandard.ZstdError:
                continue
        if unpacked > largest:
            raise InputError(
                f"bag file {file} of {file.stat().st_size} bytes unpacks to more than {largest}; a recording "
                "does not, copy it again, or unpack it by hand if you trust it"
            )

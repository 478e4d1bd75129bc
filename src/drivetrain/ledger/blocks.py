"""Blocks: many records' bodies as one compressed body, and back.

A lone Call's frames stay as they are: compressing 300 bytes helps nobody. Where one flush holds many, most of each is
a repetition of the one before, and one block of them is a quarter of their size. A block's content is a count, each
body's length (all u32, little-endian) and then the bodies; the lengths stand together because packing them so costs
a quarter of what a length before each body does.
Called by the journal (packs) and the frames (unpack). It knows neither files nor what a record means.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import msgspec

from drivetrain.core.calls import BLOCK_DECODER, BlockV1
from drivetrain.core.codec import MSGPACK

BLOCK_TAG = b"\xa7block.1"
"""How a block's body goes on after its first byte."""
BLOCK_BODIES_MIN = 32
"""Below this a block is not worth its time: 32 small records shrink to a quarter for 0.2 us more each than plain frames
take, 8 to two fifths for 0.8 us."""
BLOCK_BODY_MEAN_MAX = 1024
"""Bytes. Beyond this mean most of what is written are sealed payloads, which no compression shrinks: with 1 KiB of
payload each it saves an eighth."""
BLOCK_BYTES_MAX = 1024 * 1024
"""Of content, before compression: what one bad byte can cost, and what a reader holds at once. Larger blocks are hardly
smaller in sum."""
BLOCK_SHARE_MAX = 0.9
"""Of its bodies' size. What does not shrink below it is written plainly."""
BLOCK_LEVEL = 1
"""Of zstd. Negative levels take 10 % more space, since ids are not repetitions; 2 and 3 save 1 % for more time."""

_COUNT = struct.Struct("<I")


class BadBlock(ValueError):
    """A block whose content is not what it says."""


class Packed(msgspec.Struct, frozen=True, gc=False):
    """Bodies to write, each as one frame."""

    bodies: list[bytes]
    counts: list[int]
    """How many records each of them holds."""


class Packer:
    """Makes blocks; keeps its compressor, since making one costs as much as a small block."""

    __slots__ = ("_compressor",)

    def __init__(self) -> None:
        self._compressor: Any = None

    def packed(self, bodies: list[bytes]) -> Packed:
        """The same records in the same order: as blocks where that pays, plainly where it does not.

        Costs about 0.4 us for a body of 200 bytes.
        """
        lengths = list(map(len, bodies))
        size = sum(lengths)
        if size <= BLOCK_BYTES_MAX:
            made = self._block(bodies, lengths, size)
            return Packed(bodies, [1] * len(bodies)) if made is None else Packed([made], [len(bodies)])
        found = Packed([], [])
        start = 0
        for end in _cuts(lengths):
            chunk, own = bodies[start:end], lengths[start:end]
            made = self._block(chunk, own, sum(own))
            found.bodies.extend(chunk if made is None else [made])
            found.counts.extend([1] * len(chunk) if made is None else [len(chunk)])
            start = end
        return found

    def _block(self, bodies: Sequence[bytes], lengths: Sequence[int], size: int) -> bytes | None:
        """The body of one block, or None where it does not pay."""
        count = len(bodies)
        if count < BLOCK_BODIES_MIN or size > count * BLOCK_BODY_MEAN_MAX:
            return None
        if self._compressor is None:
            self._compressor = _zstd().ZstdCompressor(level=BLOCK_LEVEL)
        content = struct.pack(f"<{count + 1}I", count, *lengths) + b"".join(bodies)
        compressor = self._compressor
        shrunk: bytes = compressor.compress(content, compressor.FLUSH_FRAME)
        if len(shrunk) > size * BLOCK_SHARE_MAX:
            return None
        return MSGPACK.encode(BlockV1(len(content), shrunk))


def is_block(body: memoryview) -> bool:
    """Whether this frame's body is a block, which is an array of less than 16 items for good."""
    return body[1 : 1 + len(BLOCK_TAG)] == BLOCK_TAG


def content_of(body: memoryview, size_max: int) -> bytes:
    """What a block holds, as one piece for `bodies_of`; never more than `size_max` bytes are made. Raises: BadBlock."""
    zstd = _zstd()
    try:
        block = BLOCK_DECODER.decode(body)
        if not _COUNT.size <= block.raw_size <= size_max:
            raise BadBlock(f"it says that it holds {block.raw_size} bytes")
        decompressor = zstd.ZstdDecompressor()
        content: bytes = decompressor.decompress(block.content, max_length=block.raw_size + 1)
    except (msgspec.MsgspecError, zstd.ZstdError) as error:
        raise BadBlock(str(error)) from error
    if len(content) != block.raw_size or not decompressor.eof or decompressor.unused_data:
        raise BadBlock(f"it holds other than the {block.raw_size} bytes that it says")
    return content


def bodies_of(content: bytes) -> list[memoryview]:
    """The bodies in a block's content, in order; at least one. Raises: BadBlock."""
    (count,) = _COUNT.unpack_from(content)
    start = _COUNT.size * (count + 1)
    if not count or start > len(content):
        raise BadBlock(f"its {len(content)} bytes cannot hold {count} bodies")
    ends = list(accumulate(struct.unpack_from(f"<{count}I", content, _COUNT.size), initial=start))
    if ends[-1] != len(content):
        raise BadBlock("its bodies are not as long as it says")
    whole = memoryview(content)
    return [whole[begin:end] for begin, end in pairwise(ends)]


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Where runs of at most `BLOCK_BYTES_MAX` end; a body beyond that is a run of its own."""
    cuts: list[int] = []
    size = 0
    for index, length in enumerate(lengths):
        if size and size + length > BLOCK_BYTES_MAX:
            cuts.append(index)
            size = 0
        size += length
    return [*cuts, len(lengths)]


def _zstd() -> Any:
    """The library, loaded with the first block: an idle gateway needs none."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd

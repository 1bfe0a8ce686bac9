"""Reads chunk files by the drawings in docs/format alone, to prove that those suffice.

`read_page` and `read_chunk` decode bytes, `check_statistics` compares what a chunk states with the values that it
holds, `canonical` is the form in which another implementation's values are compared. On the command line,
`reader.py FILE` prints the rows of a chunk as lines of JSON.

Nothing is guessed: a checksum that fails, padding that is not zero, a version, feature bit or codec that the drawings
do not have, and bytes left over are refused with a `FormatError` that says what and where. It is slow, and simple.
"""

import argparse
import bisect
import dataclasses
import itertools
import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import zstandard
from pcodec import standalone as pco

Words = npt.NDArray[np.uint64]
Values = npt.NDArray[Any] | list[bytes]

FLOAT64, INT64, UINT64, BOOLEAN, TEXT = "float64", "int64", "uint64", "boolean", "text"
KINDS = {1: FLOAT64, 2: INT64, 3: UINT64, 4: BOOLEAN, 5: TEXT}
KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
DTYPES: dict[str, type[np.generic]] = {FLOAT64: np.float64, INT64: np.int64, UINT64: np.uint64, BOOLEAN: np.bool_}

ABSENT, NULL, VALUE = 0, 1, 2  # the cells of a Column
EVERY_VALUE, OR_NULL, OR_ABSENT, OR_EITHER = 0, 1, 2, 3  # the `cells` of a page
VECTORS, UNIT = 0, 1  # the `grid` of a page

ROWS_MAX = 65_536  # of a page
VECTOR = 1_024  # values
DICTIONARY_MAX = 4_096  # words
ALIGNMENT = 64
# But for run statistics the drawings name no limit for what zstd may expand to; this only keeps damaged bytes from
# asking for all memory.
PLAIN_MAX = 1 << 30

MAGIC = b"SONDECHK"
VERSION = 1
HEAD = MAGIC + struct.pack("<I", VERSION) + bytes(52)
ROOT_BYTES = 128
TAIL_BYTES = 16
TIME_COLUMN = 0
KEY_MAX = 64 << 10
LONG_SERIES = 4_096  # rows from which a series has run statistics
RUN_STATISTICS_MAX = 256 << 20  # plain bytes
RUN_COLUMN_HEAD_MAX = 4 + 1
RUN_ENTRY_MAX = 3 * 10 + 1 + 2 * 8 + 4 * 8 + 16
HAS_RANGE, HAS_ENDS, HAS_SUM = 1, 2, 4

MASK = (1 << 64) - 1
SIGN = 1 << 63


class FormatError(ValueError):
    """Bytes that are not what the drawings say."""


class Cursor:
    """Takes parts off the front of some bytes, never more than there are."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.position = 0

    def fail(self, what: str) -> NoReturn:
        raise FormatError(f"{self.where}, byte {self.position}: {what}")

    def take(self, count: int) -> bytes:
        left = len(self.data) - self.position
        if count > left:
            self.fail(f"{count} bytes are needed, {left} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.position)

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def u8(self) -> int:
        return self.unsigned(1)

    def u16(self) -> int:
        return self.unsigned(2)

    def u32(self) -> int:
        return self.unsigned(4)

    def u64(self) -> int:
        return self.unsigned(8)

    def signed(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little", signed=True)

    def i64(self) -> int:
        return self.signed(8)

    def f64(self) -> float:
        return float(struct.unpack("<d", self.take(8))[0])

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > MASK:
                    self.fail("a varint of more than 64 bits")
                return value
        self.fail("a varint of more than 10 bytes")

    def prefixed(self) -> bytes:
        """What the drawings call `bytes`."""
        return self.take(self.varint())

    def array(self, count: int, size: int) -> Words:
        """`count` unsigned integers of `size` bytes each."""
        return np.frombuffer(self.take(count * size), f"<u{size}").astype(np.uint64)

    def choice(self, name: str, known: dict[int, str]) -> str:
        number = self.u8()
        if number not in known:
            self.fail(f"{name} {number} is unknown")
        return known[number]

    def zeroes(self, count: int) -> None:
        if any(self.take(count)):
            self.fail(f"one of the {count} bytes before is not zero")

    def finish(self) -> None:
        left = len(self.data) - self.position
        if left:
            self.fail(f"{left} bytes are left over")


class Bits:
    """The bits of a stream, the most significant one of a byte first."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.data = cursor.rest()
        self.position = 0

    def read(self, width: int) -> int:
        end = self.position + width
        if end > 8 * len(self.data):
            self.cursor.fail(f"{width} bits are needed at bit {self.position} of a stream of {8 * len(self.data)}")
        spare = -end % 8
        window = int.from_bytes(self.data[self.position // 8 : (end + 7) // 8], "big") >> spare
        self.position = end
        return window & ((1 << width) - 1)

    def ones(self, most: int) -> int:
        """Counts the ones before a zero, which is read too unless there are `most` ones."""
        count = 0
        while count < most and self.read(1):
            count += 1
        return count

    def finish(self) -> None:
        if self.read(-self.position % 8):
            self.cursor.fail("the bits that fill the last byte of a stream are not zero")
        if self.position != 8 * len(self.data):
            self.cursor.fail(f"a stream ends at bit {self.position} of {8 * len(self.data)}")


def unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def unzigzag_words(words: Words) -> Words:
    """The signed integers, in two's complement."""
    return (words >> np.uint64(1)) ^ (np.uint64(0) - (words & np.uint64(1)))


def to_words(values: list[int]) -> Words:
    return np.array([value & MASK for value in values], np.uint64)


def unzstd(cursor: Cursor, most: int = PLAIN_MAX) -> bytes:
    """`plain length varint | zstd`, up to the end of the cursor."""
    plain = cursor.varint()
    if not 0 < plain <= most:
        cursor.fail(f"a plain length of {plain}")
    frame = cursor.rest()
    try:
        # A frame may state its size, and would be given as much memory as it says.
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated not in (plain, zstandard.CONTENTSIZE_UNKNOWN):
            cursor.fail(f"a zstd frame of {stated} bytes, not {plain}")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=plain, allow_extra_data=False)
    except zstandard.ZstdError as error:
        cursor.fail(f"zstd: {error}")
    if len(data) != plain:
        cursor.fail(f"zstd gives {len(data)} bytes, not {plain}")
    return data


def unpco(cursor: Cursor, count: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """A standalone pco file, up to the end of the cursor."""
    data = cursor.rest()
    values: npt.NDArray[Any] | None = None
    # What stands behind its end is ignored by pco: a file that ends where it should fails without its last byte.
    for part in (data[:-1], data):
        try:
            values = pco.simple_decompress(part)
        except (TypeError, RuntimeError) as error:
            if part is data:
                cursor.fail(f"pco: {error}")
        else:
            if part is not data:
                cursor.fail("bytes are left over behind pco")
    if values is None or values.dtype != dtype or len(values) != count:
        found = "nothing" if values is None else f"{len(values)} of {values.dtype}"
        cursor.fail(f"pco gives {found}, not {count} of {np.dtype(dtype)}")
    return values


# Packed integers


def unpack(cursor: Cursor, count: int, width: int, interleave: bool = True) -> Words:
    """Bit packing; exactly 1,024 values are interleaved unless `interleave` is false."""
    if width > 64:
        cursor.fail(f"a width of {width} bits")
    if interleave and count == VECTOR:
        return join_bits(interleaved_bits(cursor.take(VECTOR * width // 8), width))
    bits = np.unpackbits(np.frombuffer(cursor.take((count * width + 7) // 8), np.uint8), bitorder="little")
    if bits[count * width :].any():
        cursor.fail("the bits that fill the last byte of packed values are not zero")
    return join_bits(bits[: count * width].reshape(count, width))


def interleaved_bits(data: bytes, width: int) -> npt.NDArray[np.uint8]:
    """Word `k` of lane `l` stands at byte `8 * (16 * k + l)`; value `i` is the one `i // 16` of lane `i % 16`."""
    words = np.frombuffer(data, np.uint8).reshape(width, 16, 8)
    lanes = np.unpackbits(words.transpose(1, 0, 2).reshape(16, 8 * width), axis=1, bitorder="little")
    return lanes.reshape(16, 64, width).transpose(1, 0, 2).reshape(VECTOR, width)


def join_bits(bits: npt.NDArray[np.uint8]) -> Words:
    """One word of each row of bits, the lowest first."""
    count, width = bits.shape
    full = np.zeros((count, 64), np.uint8)
    full[:, :width] = bits
    return np.packbits(full, axis=1, bitorder="little").reshape(-1).view("<u8").astype(np.uint64)


def read_positions(cursor: Cursor, exceptions: int, count: int, size: int = 2) -> npt.NDArray[np.intp]:
    """The positions of exceptions, ascending and each below `count`."""
    positions = cursor.array(exceptions, size).astype(np.intp)
    if (np.diff(positions) <= 0).any() or (positions >= count).any():
        cursor.fail(f"positions of exceptions that do not ascend below {count}")
    return positions


def read_patched(cursor: Cursor, count: int) -> Words:
    width, exceptions, high_width = cursor.u8(), cursor.u16(), cursor.u8()
    if width + high_width > 64 or (high_width == 0) != (exceptions == 0):
        cursor.fail(f"{exceptions} exceptions with {width} low and {high_width} high bits")
    values = unpack(cursor, count, width)
    positions = read_positions(cursor, exceptions, count)
    high = unpack(cursor, exceptions, high_width, interleave=False)
    if exceptions:
        values[positions] |= high << np.uint64(width)
    return values


# Codecs of words. Each takes what stands behind the tag; what is left over is refused by `decode_words`.

WordCodec = Callable[[Cursor, int], Words]
WordCodecs = dict[int, WordCodec]


def decode_words(cursor: Cursor, count: int, codecs: WordCodecs, what: str) -> Words:
    """A vector or unit with its tag, up to the end of the cursor."""
    codec = cursor.u8()
    if codec not in codecs:
        cursor.fail(f"codec {codec} is unknown, or not one of {what}")
    words = codecs[codec](cursor, count)
    cursor.finish()
    return words


def raw(cursor: Cursor, count: int) -> Words:
    return cursor.array(count, 8)


def constant(cursor: Cursor, count: int) -> Words:
    return np.full(count, cursor.u64(), np.uint64)


def gorilla(cursor: Cursor, count: int) -> Words:
    bits = Bits(cursor)
    value = bits.read(64)
    values = [value]
    window: tuple[int, int] | None = None  # its length and the zeroes behind it
    while len(values) < count:
        prefix = bits.ones(2)
        if prefix == 2:
            leading, length = bits.read(5), bits.read(6) + 1
            if leading + length > 64:
                cursor.fail(f"a window of {length} bits behind {leading} zeroes")
            window = length, 64 - leading - length
        if prefix:
            if window is None:
                cursor.fail("a value in the last window before there is one")
            value ^= bits.read(window[0]) << window[1]
        values.append(value)
    bits.finish()
    return to_words(values)


CHIMP_LEADING = (0, 8, 12, 16, 18, 20, 22, 24)


def chimp128(cursor: Cursor, count: int) -> Words:
    bits = Bits(cursor)
    values = [bits.read(64)]
    leading: int | None = None  # of the value before, if that was a `10` or `11`
    while len(values) < count:
        mode = bits.read(2)
        if mode < 2:
            value, leading = chimp128_slot(bits, values), None
            if mode == 1:
                value ^= chimp128_window(bits)
        else:
            leading = CHIMP_LEADING[bits.read(3)] if mode == 3 else leading
            if leading is None:
                cursor.fail("leading zeroes of the value before, which has none")
            value = values[-1] ^ bits.read(64 - leading)
        values.append(value)
    bits.finish()
    return to_words(values)


def chimp128_slot(bits: Bits, values: list[int]) -> int:
    """The newest value whose position is the slot's, modulo 128."""
    slot = bits.read(7)
    back = (len(values) - 1 - slot) % 128 + 1
    if back > len(values):
        bits.cursor.fail(f"slot {slot} after {len(values)} values")
    return values[-back]


def chimp128_window(bits: Bits) -> int:
    leading, length = CHIMP_LEADING[bits.read(3)], bits.read(6)
    if length == 0 or leading + length > 64:
        bits.cursor.fail(f"a window of {length} bits behind {leading} zeroes")
    return bits.read(length) << (64 - leading - length)


DELTA_WIDTHS = (0, 14, 24, 36, 64)


def delta_of_delta(cursor: Cursor, count: int) -> Words:
    bits = Bits(cursor)
    value = bits.read(64)
    delta = 0
    values = [value]
    while len(values) < count:
        delta += unzigzag(bits.read(DELTA_WIDTHS[bits.ones(4)]))
        value += delta
        values.append(value)
    bits.finish()
    # The stream has values, all else has words.
    return to_words([value ^ SIGN for value in values])


def frame_of_reference(cursor: Cursor, count: int) -> Words:
    base = np.uint64(cursor.u64())
    return read_patched(cursor, count) + base


def delta(cursor: Cursor, count: int) -> Words:
    first, centre = cursor.u64(), cursor.u64()
    steps = read_patched(cursor, count)
    if steps[0]:
        cursor.fail("the first value has a delta")
    steps = unzigzag_words(steps) + np.uint64(centre)
    steps[0] = first
    return np.cumsum(steps, dtype=np.uint64)


def runs_of_deltas(cursor: Cursor, count: int) -> Words:
    steps, runs = [cursor.varint()], [1]
    left = count - 1
    while left:
        step, run = unzigzag(cursor.varint()), cursor.varint()
        if not 0 < run <= left:
            cursor.fail(f"a run of {run} where {left} values are left")
        steps.append(step)
        runs.append(run)
        left -= run
    return np.cumsum(np.repeat(to_words(steps), runs), dtype=np.uint64)


def sequence(cursor: Cursor, count: int) -> Words:
    first, step = np.uint64(cursor.u64()), np.uint64(cursor.u64())
    return np.arange(count, dtype=np.uint64) * step + first


# What may stand inside GCD: the tags below without 12, or the vectors could be nested without end.
QUOTIENT_VECTORS: WordCodecs = {1: constant, 5: frame_of_reference, 6: delta, 7: runs_of_deltas, 17: sequence}


def gcd(cursor: Cursor, count: int) -> Words:
    base, divisor = cursor.u64(), cursor.varint()
    if divisor == 0:
        cursor.fail("a divisor of 0")
    quotients = decode_words(cursor, count, QUOTIENT_VECTORS, "a vector of quotients")
    return quotients * np.uint64(divisor) + np.uint64(base)


# What may stand inside ALP and dictionaries.
INNER_VECTORS: WordCodecs = QUOTIENT_VECTORS | {12: gcd}


def alp(cursor: Cursor, count: int) -> Words:
    e, f, lane, exceptions = cursor.u8(), cursor.u8(), cursor.u8(), cursor.u16()
    positions = read_positions(cursor, exceptions, count)
    bits = cursor.array(exceptions, 8)
    if lane > 64:
        cursor.fail(f"a lane of {lane} bits")
    ulps = np.zeros(count, np.uint64)
    if lane:
        ulps = unpack(cursor, count, lane) - np.uint64(1 << (lane - 1))
    d = decode_words(cursor, count, INNER_VECTORS, "a vector of ALP's integers") ^ np.uint64(SIGN)
    words = alp_products(cursor, d.view(np.int64), e, f) + ulps
    words[positions] = bits
    return words


def alp_pco(cursor: Cursor, count: int) -> Words:
    e, f, exceptions = cursor.u8(), cursor.u8(), cursor.u32()
    positions = read_positions(cursor, exceptions, count, size=4)
    bits = cursor.array(exceptions, 8)
    words = alp_products(cursor, unpco(cursor, count, np.int64), e, f)
    words[positions] = bits
    return words


def alp_products(cursor: Cursor, d: npt.NDArray[np.int64], e: int, f: int) -> Words:
    if not 0 <= f <= e <= 18:
        cursor.fail(f"exponents {e} and {f}")
    limit = 1 << 51
    if ((d <= -limit) | (d >= limit)).any():
        cursor.fail("an integer of ALP with more than 51 bits")
    # Two products, each rounded; the nearest float64 is what float() gives.
    scaled = d.astype(np.float64) * np.float64(float(f"1e{f}"))
    return (scaled * np.float64(float(f"1e-{e}"))).view(np.uint64)


def alp_rd(cursor: Cursor, count: int) -> Words:
    right, size = cursor.u8(), cursor.u8()
    if not (48 <= right <= 63 and 1 <= size <= 8):
        cursor.fail(f"{right} right bits and {size} entries")
    entries, exceptions = cursor.array(size, 2), cursor.u16()
    codes = unpack(cursor, count, (size - 1).bit_length())
    if (codes >= size).any():
        cursor.fail(f"a code that is not below {size}")
    right_parts = unpack(cursor, count, right)
    left_parts = entries[codes.astype(np.intp)]
    positions = read_positions(cursor, exceptions, count)
    left_parts[positions] = cursor.array(exceptions, 2)
    if (left_parts >> np.uint64(64 - right)).any():
        cursor.fail(f"a left part of more than {64 - right} bits")
    return (left_parts << np.uint64(right)) | right_parts


def zstd_words(cursor: Cursor, count: int) -> Words:
    plain = Cursor(unzstd(cursor), f"{cursor.where}, zstd")
    words = plain.array(count, 8)
    plain.finish()
    return words


def pco_floats(cursor: Cursor, count: int) -> Words:
    return unpco(cursor, count, np.float64).view(np.uint64)


def pco_words(cursor: Cursor, count: int) -> Words:
    return unpco(cursor, count, np.uint64)


FLOAT_VECTORS: WordCodecs = {0: raw, 1: constant, 2: gorilla, 3: alp, 13: chimp128, 16: alp_rd}
TIME_VECTORS: WordCodecs = {4: delta_of_delta}
WORD_CODECS: dict[tuple[str, int], WordCodecs] = {
    (FLOAT64, VECTORS): FLOAT_VECTORS,
    (INT64, VECTORS): INNER_VECTORS | TIME_VECTORS,  # a time is an int64 to its page
    (UINT64, VECTORS): INNER_VECTORS,
    (FLOAT64, UNIT): {14: pco_floats, 15: alp_pco, 18: zstd_words},
    (INT64, UNIT): {7: runs_of_deltas, 14: pco_words, 17: sequence, 18: zstd_words},
    (UINT64, UNIT): {7: runs_of_deltas, 14: pco_words, 17: sequence, 18: zstd_words},
}

# Booleans and text


def decode_booleans(cursor: Cursor, count: int) -> npt.NDArray[np.bool_]:
    """Codecs 8 and 9 with their tag, up to the end of the cursor."""
    codec = cursor.u8()
    if codec == 8:
        values = run_lengths(cursor, count)
    elif codec == 9:
        values = unpack(cursor, count, 1, interleave=False).astype(np.bool_)
    else:
        cursor.fail(f"codec {codec} is unknown, or not one of booleans")
    cursor.finish()
    return values


def run_lengths(cursor: Cursor, count: int) -> npt.NDArray[np.bool_]:
    first = cursor.u8()
    if first > 1:
        cursor.fail(f"a boolean of {first}")
    runs: list[int] = []
    left = count
    while left:
        run = cursor.varint()
        if not 0 < run <= left:
            cursor.fail(f"a run of {run} where {left} values are left")
        runs.append(run)
        left -= run
    values = (np.arange(len(runs)) + first) % 2 == 1
    return np.repeat(values, runs)


def decode_text(cursor: Cursor, count: int, dictionary: list[bytes] | None) -> list[bytes]:
    """Codecs 10 and 11 with their tag, up to the end of the cursor."""
    codec = cursor.u8()
    if codec == 10:
        entries = dictionary or []
        return [entries[code] for code in decode_codes(cursor, count, len(entries))]
    if codec == 11:
        return zstd_text(cursor, count)
    cursor.fail(f"codec {codec} is unknown, or not one of text")


def zstd_text(cursor: Cursor, count: int) -> list[bytes]:
    plain = Cursor(unzstd(cursor), f"{cursor.where}, zstd")
    lengths = [plain.varint() for _ in range(count)]
    texts = [plain.take(length) for length in lengths]
    plain.finish()
    check_utf8(plain, texts)
    return texts


def check_utf8(cursor: Cursor, texts: list[bytes]) -> None:
    for text in texts:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            cursor.fail(f"text that is not UTF-8: {error}")


# Dictionaries


def decode_codes(cursor: Cursor, count: int, entries: int) -> npt.NDArray[np.intp]:
    codes = decode_words(cursor, count, INNER_VECTORS, "a vector of codes")
    if (codes >= entries).any():
        cursor.fail(f"a code of a dictionary of {entries} entries is {codes.max()}")
    return codes.astype(np.intp)


def read_text_dictionary(cursor: Cursor) -> list[bytes]:
    plain = Cursor(unzstd(cursor), f"{cursor.where}, zstd")
    entries = [plain.prefixed() for _ in range(plain.varint())]
    plain.finish()
    check_utf8(plain, entries)
    if any(a >= b for a, b in itertools.pairwise(entries)):
        plain.fail("entries that do not ascend")
    return entries


def read_word_dictionary(cursor: Cursor) -> Words:
    plain = Cursor(unzstd(cursor), f"{cursor.where}, zstd")
    count = plain.varint()
    if count > DICTIONARY_MAX:
        plain.fail(f"{count} entries")
    words = plain.array(count, 8)
    plain.finish()
    if (words[1:] <= words[:-1]).any():
        plain.fail("entries that do not ascend")
    return words


def dictionary_codec(entries: Words) -> WordCodec:
    return lambda cursor, count: entries[decode_codes(cursor, count, len(entries))]


# Pages


@dataclass(frozen=True)
class Column:
    """The cells of one page.

    Attributes:
        kind: The name of the type.
        cells: Of each row ABSENT, NULL or VALUE.
        values: Of each row, in the type's dtype; zero, false or b"" where there is none.
    """

    kind: str
    cells: npt.NDArray[np.uint8]
    values: Values


@dataclass(frozen=True)
class PageHead:
    kind: str
    cells: int
    grid: int
    rows: int
    present: int
    map_length: int
    dictionary_length: int


def read_page(data: bytes, where: str = "page") -> Column:
    """Decodes a page with its padding.

    Raises:
        FormatError: The bytes are not such a page.
    """
    cursor = Cursor(data, where)
    head = read_page_head(cursor)
    cells = read_map(Cursor(cursor.take(head.map_length), f"{where}, map"), head)
    dictionary = Cursor(cursor.take(head.dictionary_length), f"{where}, dictionary")
    parts = read_parts(cursor, head)
    cursor.zeroes(-cursor.position % ALIGNMENT)
    cursor.finish()
    if head.kind == TEXT:
        return text_column(cells, parts, dictionary)
    values = np.zeros(head.rows, DTYPES[head.kind])
    if head.kind == BOOLEAN:
        if head.dictionary_length:
            dictionary.fail("booleans have none")
        present = [decode_booleans(part, count) for part, count in parts]
    else:
        present = decode_numbers(head, parts, dictionary)
    if parts:
        values[cells == VALUE] = np.concatenate(present)
    return Column(head.kind, cells, values)


def read_page_head(cursor: Cursor) -> PageHead:
    kind, cells, grid = cursor.choice("kind", KINDS), cursor.u8(), cursor.u8()
    cursor.zeroes(1)
    head = PageHead(kind, cells, grid, cursor.u32(), cursor.u32(), cursor.u32(), cursor.u32())
    if cells > OR_EITHER or grid > UNIT:
        cursor.fail(f"cells {cells} or grid {grid} is unknown")
    if not head.present <= head.rows <= ROWS_MAX:
        cursor.fail(f"{head.present} values in {head.rows} rows")
    if (cells == EVERY_VALUE) != (head.map_length == 0) or (cells == EVERY_VALUE and head.present != head.rows):
        cursor.fail(f"cells {cells} with {head.present} values of {head.rows} and a map of {head.map_length} bytes")
    return head


def read_map(cursor: Cursor, head: PageHead) -> npt.NDArray[np.uint8]:
    if head.cells == EVERY_VALUE:
        return np.full(head.rows, VALUE, np.uint8)
    has_value = read_map_part(cursor, head.rows)
    if np.count_nonzero(has_value) != head.present:
        cursor.fail(f"a map of {np.count_nonzero(has_value)} values in a page of {head.present}")
    cells = np.where(has_value, VALUE, NULL if head.cells == OR_NULL else ABSENT).astype(np.uint8)
    if head.cells == OR_EITHER:
        cells[~has_value] = np.where(read_map_part(cursor, head.rows - head.present), NULL, ABSENT)
    cursor.finish()
    return cells


def read_map_part(cursor: Cursor, count: int) -> npt.NDArray[np.bool_]:
    return decode_booleans(Cursor(cursor.take(cursor.u32()), cursor.where), count)


def read_parts(cursor: Cursor, head: PageHead) -> list[tuple[Cursor, int]]:
    """The vectors or the unit, each with the number of its values."""
    step = head.present if head.grid == UNIT else VECTOR
    starts = range(0, head.present, step or 1)
    ends = [cursor.u32() for _ in starts]
    parts = []
    position = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end < position:
            cursor.fail(f"vector {number} ends at {end}, before it begins")
        part = Cursor(cursor.take(end - position), f"{cursor.where}, vector {number}")
        parts.append((part, min(step, head.present - start)))
        position = end
    return parts


def text_column(cells: npt.NDArray[np.uint8], parts: list[tuple[Cursor, int]], dictionary: Cursor) -> Column:
    entries = read_text_dictionary(dictionary) if dictionary.data else None
    present = [text for part, count in parts for text in decode_text(part, count, entries)]
    values = [b""] * len(cells)
    for row, text in zip(np.flatnonzero(cells == VALUE), present, strict=True):
        values[row] = text
    return Column(TEXT, cells, values)


def decode_numbers(head: PageHead, parts: list[tuple[Cursor, int]], dictionary: Cursor) -> list[npt.NDArray[Any]]:
    codecs = WORD_CODECS[head.kind, head.grid]
    if dictionary.data:
        entries = read_word_dictionary(dictionary)
        if head.grid == VECTORS:
            codecs = codecs | {10: dictionary_codec(entries)}
    what = f"{'units' if head.grid == UNIT else 'vectors'} of {head.kind} (10: with a dictionary)"
    return [from_words(head.kind, decode_words(part, count, codecs, what)) for part, count in parts]


def from_words(kind: str, words: Words) -> npt.NDArray[Any]:
    if kind == INT64:
        words = words ^ np.uint64(SIGN)
    return words.view(DTYPES[kind])


def canonical(column: Column) -> bytes:
    """Kind, row count, then all cells, then all values: equal where two columns are."""
    head = struct.pack("<BI", KIND_NUMBERS[column.kind], len(column.cells)) + column.cells.tobytes()
    if isinstance(column.values, list):
        return head + b"".join(struct.pack("<I", len(text)) + text for text in column.values)
    dtype = column.values.dtype.newbyteorder("<")
    return head + column.values.astype(dtype, copy=False).tobytes()


# Chunks


@dataclass(frozen=True)
class Section:
    offset: int
    length: int
    crc: int


@dataclass(frozen=True)
class Root:
    """What a chunk says of itself; the time range is `start <= time < end`."""

    version: int
    features: int
    chunk_id: int
    table_id: int
    start: int
    end: int
    first_seq_no: int
    last_seq_no: int
    rows: int
    series: int
    series_directory: Section
    page_directory: Section
    run_statistics: Section


@dataclass(frozen=True)
class Series:
    """A series, its tag values by the order of the tags' ids, and its rows in this chunk."""

    id: int
    key: bytes
    tags: list[str | None]
    rows: int
    first_time: int
    last_time: int


@dataclass(frozen=True)
class Statistics:
    """Of a page, or of a whole series in the chunk.

    Attributes:
        range: The bits of the smallest and the largest value.
        first: The time and the bits of the first value.
        last: The same of the last one.
        sum: Of floats the sum and its compensation.
    """

    rows: int
    present: int
    nulls: int
    nans: int
    range: tuple[int, int] | None
    first: tuple[int, int] | None
    last: tuple[int, int] | None
    sum: tuple[float, float] | int | None


@dataclass(frozen=True)
class PageEntry:
    section: Section
    statistics: Statistics


Entries = dict[int, list[PageEntry | None]]  # by column id, then by row group


@dataclass(frozen=True)
class Directory:
    """A chunk whose sections are verified and whose pages are not."""

    data: bytes
    root: Root
    series: list[Series]
    kinds: dict[int, str]
    entries: Entries

    def column(self, column_id: int, group: int) -> Column | None:
        """Verifies and decodes one page; None where the column is absent from the group."""
        entry = self.entries[column_id][group]
        if entry is None:
            return None
        where = f"page of column {column_id}, group {group}"
        return read_chunk_page(verified(self.data, entry.section, where), self.kinds[column_id], entry.statistics)


@dataclass(frozen=True)
class ChunkColumn:
    """A column by row groups; None where it is absent from one."""

    kind: str
    groups: list[Column | None]
    statistics: list[Statistics | None]


@dataclass(frozen=True)
class Chunk:
    """A whole chunk; run statistics are by column id and then by the position in `series`."""

    root: Root
    series: list[Series]
    columns: dict[int, ChunkColumn]
    run_statistics: dict[int, dict[int, Statistics]]


def read_chunk(data: bytes) -> Chunk:
    """Verifies and decodes everything in a chunk.

    Raises:
        FormatError: A byte is not what the drawings say.
    """
    directory = open_chunk(data)
    columns = {column_id: read_column(directory, column_id) for column_id in directory.kinds}
    return Chunk(directory.root, directory.series, columns, read_run_statistics(directory))


def open_chunk(data: bytes) -> Directory:
    """Verifies head, root, tail and all sections, and that they and the pages are the whole file."""
    root = read_root(data)
    series = read_series_directory(verified(data, root.series_directory, "series directory"), root)
    kinds, entries = read_page_directory(verified(data, root.page_directory, "page directory"))
    verified(data, root.run_statistics, "run statistics")
    check_layout(data, root, entries)
    check_rows(root, entries)
    return Directory(data, root, series, kinds, entries)


def read_root(data: bytes) -> Root:
    if len(data) < len(HEAD) + ROOT_BYTES + TAIL_BYTES:
        raise FormatError(f"chunk: {len(data)} bytes are too few")
    check_head(Cursor(data[: len(HEAD)], "head"))
    tail = Cursor(data[-TAIL_BYTES:], "tail")
    length, crc = tail.u32(), tail.u32()
    if tail.rest() != MAGIC:
        tail.fail("no SONDECHK at the end")
    if length != ROOT_BYTES:
        tail.fail(f"a root of {length} bytes, not {ROOT_BYTES}")
    section = Section(len(data) - TAIL_BYTES - ROOT_BYTES, ROOT_BYTES, crc)
    return parse_root(verified(data, section, "root"))


def check_head(cursor: Cursor) -> None:
    if cursor.take(len(MAGIC)) != MAGIC:
        cursor.fail("no SONDECHK at the beginning")
    version = cursor.u32()
    if version != VERSION:
        cursor.fail(f"version {version} is unknown")
    cursor.zeroes(len(HEAD) - cursor.position)


def parse_root(cursor: Cursor) -> Root:
    root = Root(
        version=cursor.u32(),
        features=cursor.u32(),
        chunk_id=cursor.u64(),
        table_id=cursor.u32(),
        start=cursor.i64(),
        end=cursor.i64(),
        first_seq_no=cursor.u64(),
        last_seq_no=cursor.u64(),
        rows=cursor.u64(),
        series=cursor.u64(),
        series_directory=read_section(cursor),
        page_directory=read_section(cursor),
        run_statistics=read_section(cursor),
    )
    cursor.finish()
    if root.version != VERSION:
        cursor.fail(f"version {root.version} is unknown")
    if root.features:
        cursor.fail(f"feature bits {root.features:#x} are unknown")
    if root.start >= root.end or root.first_seq_no > root.last_seq_no:
        cursor.fail(f"times {root.start} to {root.end}, SeqNos {root.first_seq_no} to {root.last_seq_no}")
    return root


def read_section(cursor: Cursor) -> Section:
    return Section(cursor.u64(), cursor.u64(), cursor.u32())


def verified(data: bytes, part: Section, where: str) -> Cursor:
    """The bytes of a section or page, which have their checksum."""
    if part.offset + part.length > len(data):
        raise FormatError(f"{where}: byte {part.offset} and {part.length} more, in a file of {len(data)}")
    found = data[part.offset : part.offset + part.length]
    if zlib.crc32(found) != part.crc:
        raise FormatError(f"{where}, byte {part.offset} of the file: crc {zlib.crc32(found):08x}, not {part.crc:08x}")
    return Cursor(found, where)


def read_series_directory(cursor: Cursor, root: Root) -> list[Series]:
    series: list[Series] = []
    for _ in range(root.series):
        series_id, key = cursor.varint(), cursor.prefixed()
        tags = read_series_key(key, f"{cursor.where}, key of series {series_id}")
        series.append(Series(series_id, key, tags, cursor.varint(), cursor.i64(), cursor.i64()))
        if not (series[-1].rows and root.start <= series[-1].first_time <= series[-1].last_time < root.end):
            cursor.fail(f"{series[-1]} in a chunk from {root.start} to {root.end}")
    cursor.finish()
    if any(a.key >= b.key for a, b in itertools.pairwise(series)):
        cursor.fail("keys that do not ascend")
    if len({one.id for one in series}) != len(series):
        cursor.fail("an id of two series")
    if sum(one.rows for one in series) != root.rows:
        cursor.fail(f"{sum(one.rows for one in series)} rows of series in a chunk of {root.rows}")
    return series


def read_series_key(key: bytes, where: str = "series key") -> list[str | None]:
    """The tag values of a series, None where one is absent; absent ones at the end are not there."""
    cursor = Cursor(key, where)
    if len(key) > KEY_MAX:
        cursor.fail(f"{len(key)} bytes")
    tags: list[str | None] = []
    while cursor.position < len(key):
        tag = cursor.u8()
        if tag > 1:
            cursor.fail(f"a value that begins with {tag:02x}")
        tags.append(read_tag(cursor) if tag else None)
    if tags and tags[-1] is None:
        cursor.fail("an absent value at the end")
    return tags


def read_tag(cursor: Cursor) -> str:
    value = bytearray()
    while True:
        byte = cursor.take(1)
        if byte == b"\x00":
            mark = cursor.u8()
            if mark == 0x01:
                break
            if mark != 0xFF:
                cursor.fail(f"00 {mark:02x} in a value")
        value += byte
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        cursor.fail(f"a value that is not UTF-8: {error}")


def read_page_directory(cursor: Cursor) -> tuple[dict[int, str], Entries]:
    groups, columns = cursor.varint(), cursor.varint()
    kinds: dict[int, str] = {}
    entries: Entries = {}
    for _ in range(columns):
        column_id, kind = cursor.u32(), cursor.choice("kind", KINDS)
        is_time = column_id == TIME_COLUMN
        if column_id in kinds or is_time != (not kinds) or (is_time and kind != INT64):
            cursor.fail(f"column {column_id} of {kind} after {list(kinds)}")
        kinds[column_id] = kind
        entries[column_id] = [read_page_entry(cursor, kind) for _ in range(groups)]
    cursor.finish()
    if not kinds:
        cursor.fail("no time column")
    return kinds, entries


def read_page_entry(cursor: Cursor, kind: str) -> PageEntry | None:
    length = cursor.u32()
    if length == 0:
        return None
    section = Section(cursor.u64(), length, cursor.u32())
    return PageEntry(section, read_statistics(cursor, kind, (cursor.u32(), cursor.u32(), cursor.u32(), cursor.u32())))


def read_statistics(cursor: Cursor, kind: str, counts: tuple[int, int, int, int]) -> Statistics:
    """What follows the counts (rows, present, NULLs, NaNs): flags and what they say."""
    rows, present, nulls, nans = counts
    flags = cursor.u8()
    if flags & ~(HAS_RANGE | HAS_ENDS | HAS_SUM) or (kind == TEXT and flags):
        cursor.fail(f"flags {flags:#x} of {kind}")
    if present + nulls > rows or nans > present:
        cursor.fail(f"{present} values, {nulls} NULLs and {nans} NaNs in {rows} rows")
    extremes = (cursor.u64(), cursor.u64()) if flags & HAS_RANGE else None
    first = (cursor.i64(), cursor.u64()) if flags & HAS_ENDS else None
    last = (cursor.i64(), cursor.u64()) if flags & HAS_ENDS else None
    total = read_sum(cursor, kind) if flags & HAS_SUM else None
    return Statistics(rows, present, nulls, nans, extremes, first, last, total)


def read_sum(cursor: Cursor, kind: str) -> tuple[float, float] | int:
    return (cursor.f64(), cursor.f64()) if kind == FLOAT64 else cursor.signed(16)


def check_layout(data: bytes, root: Root, entries: Entries) -> None:
    """Nothing may stand between the parts, where no checksum would cover it, and no two may share bytes."""
    pages = sorted(page_sections(entries), key=lambda section: section.offset)
    position = len(HEAD)
    for part in [*pages, root.series_directory, root.page_directory, root.run_statistics]:
        if part.offset != position:
            raise FormatError(f"chunk, byte {position}: the next part begins at {part.offset}")
        position += part.length
    if position != len(data) - TAIL_BYTES - ROOT_BYTES:
        raise FormatError(f"chunk, byte {position}: no root")
    unaligned = [page.offset for page in pages if page.offset % ALIGNMENT]
    if unaligned:
        raise FormatError(f"chunk, byte {unaligned[0]}: a page begins here, at no multiple of {ALIGNMENT}")


def page_sections(entries: Entries) -> Iterator[Section]:
    return (entry.section for column in entries.values() for entry in column if entry)


def check_rows(root: Root, entries: Entries) -> None:
    """Every group has times, all pages of a group have as many rows, and all groups the chunk's."""
    total = 0
    for number, group in enumerate(zip(*entries.values(), strict=True)):
        time = group[0]
        if time is None or not 0 < time.statistics.rows == time.statistics.present <= ROWS_MAX:
            raise FormatError(f"page directory: group {number} is not {ROWS_MAX} or fewer rows that all have a time")
        rows = {entry.statistics.rows for entry in group if entry}
        if len(rows) != 1:
            raise FormatError(f"page directory: the pages of group {number} have {sorted(rows)} rows")
        total += time.statistics.rows
    if total != root.rows:
        raise FormatError(f"page directory: {total} rows in a chunk of {root.rows}")


def read_column(directory: Directory, column_id: int) -> ChunkColumn:
    entries = directory.entries[column_id]
    groups = [directory.column(column_id, group) for group in range(len(entries))]
    return ChunkColumn(directory.kinds[column_id], groups, [entry.statistics if entry else None for entry in entries])


def read_chunk_page(page: Cursor, kind: str, stated: Statistics) -> Column:
    column = read_page(page.data, page.where)
    if (column.kind, len(column.cells)) != (kind, stated.rows):
        page.fail(f"{len(column.cells)} rows of {column.kind}, not {stated.rows} of {kind}")
    present = np.count_nonzero(column.cells == VALUE)
    if present != stated.present:
        page.fail(f"{present} values, the page directory says {stated.present}")
    return column


# Run statistics


def read_run_statistics(directory: Directory) -> dict[int, dict[int, Statistics]]:
    section = verified(directory.data, directory.root.run_statistics, "run statistics")
    runs = [position for position, one in enumerate(directory.series) if one.rows >= LONG_SERIES]
    columns = {column_id: kind for column_id, kind in directory.kinds.items() if has_runs(column_id, kind)}
    if not section.data:
        # Where there are long series, it is empty only if it would be too large.
        if runs and columns and 10 + len(columns) * (RUN_COLUMN_HEAD_MAX + len(runs) * RUN_ENTRY_MAX) <= RUN_STATISTICS_MAX:
            section.fail(f"nothing, with {len(runs)} series of {LONG_SERIES} rows or more")
        return {}
    if not runs or not columns:
        section.fail(f"{len(section.data)} bytes without a series of {LONG_SERIES} rows")
    cursor = Cursor(unzstd(section, RUN_STATISTICS_MAX), f"{section.where}, zstd")
    if cursor.varint() != len(columns):
        cursor.fail(f"not the columns {list(columns)}")
    statistics = {}
    for column_id, kind in columns.items():
        if (cursor.u32(), cursor.choice("kind", KINDS)) != (column_id, kind):
            cursor.fail(f"not column {column_id} of {kind}")
        statistics[column_id] = {run: read_run_entry(cursor, kind, directory.series[run].rows) for run in runs}
    cursor.finish()
    return statistics


def has_runs(column_id: int, kind: str) -> bool:
    return column_id != TIME_COLUMN and kind != TEXT


def read_run_entry(cursor: Cursor, kind: str, rows: int) -> Statistics:
    return read_statistics(cursor, kind, (rows, cursor.varint(), cursor.varint(), cursor.varint()))


# Checking statistics


def value_bits(value: Any) -> int:
    """64 bits of a numpy scalar, whose NaN payload a conversion to a Python float need not keep."""
    return int(value) if isinstance(value, np.bool_) else int.from_bytes(value.tobytes(), sys.byteorder)


def float_of(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def float_bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def check_statistics(chunk: Chunk) -> None:
    """Compares all statistics of a chunk with the values in it.

    Raises:
        FormatError: They do not agree.
    """
    rows = Rows(chunk)
    for position, series in enumerate(chunk.series):
        check_series(chunk.root, series, rows.times(*rows.of_series(position)))
    for column_id, column in chunk.columns.items():
        for group, stated in enumerate(column.statistics):
            if stated:
                where = f"statistics of column {column_id}, group {group}"
                compare(where, column.kind, stated, page_statistics(rows, column_id, group))
        for position, stated in chunk.run_statistics.get(column_id, {}).items():
            where = f"run statistics of column {column_id}, series {chunk.series[position].id}"
            compare(where, column.kind, stated, summarize(rows, column_id, *rows.of_series(position)))


class Rows:
    """The rows of a chunk by their positions in the whole of it."""

    def __init__(self, chunk: Chunk) -> None:
        self.columns = chunk.columns
        times = chunk.columns[TIME_COLUMN].groups
        self.group_starts = [0, *itertools.accumulate(len(group.cells) for group in times if group)]
        self.series_starts = [0, *itertools.accumulate(series.rows for series in chunk.series)]

    def of_series(self, position: int) -> tuple[int, int]:
        return self.series_starts[position], self.series_starts[position + 1]

    def of_group(self, group: int) -> tuple[int, int]:
        return self.group_starts[group], self.group_starts[group + 1]

    def are_of_one_series(self, start: int, stop: int) -> bool:
        return bisect.bisect_right(self.series_starts, start) == bisect.bisect_right(self.series_starts, stop - 1)

    def times(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        return self.between(TIME_COLUMN, start, stop)[1]

    def between(self, column_id: int, start: int, stop: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        """Cells and values, of one group or of several."""
        column = self.columns[column_id]
        first = bisect.bisect_right(self.group_starts, start) - 1
        last = bisect.bisect_left(self.group_starts, stop)
        parts = []
        for group in range(first, last):
            group_start, group_stop = self.of_group(group)
            part = slice(max(start, group_start) - group_start, min(stop, group_stop) - group_start)
            parts.append(slice_of(column.groups[group], column.kind, part))
        cells, values = zip(*parts, strict=True)
        return np.concatenate(cells), np.concatenate(values)


def slice_of(page: Column | None, kind: str, part: slice) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    dtype = DTYPES.get(kind, np.object_)
    if page is None:
        count = part.stop - part.start
        return np.full(count, ABSENT, np.uint8), np.zeros(count, dtype)
    return page.cells[part], np.asarray(page.values[part], dtype)


def check_series(root: Root, series: Series, times: npt.NDArray[np.int64]) -> None:
    where = f"times of series {series.id}"
    if (times[1:] < times[:-1]).any():
        raise FormatError(f"{where}: they do not ascend")
    if (times[0], times[-1]) != (series.first_time, series.last_time):
        raise FormatError(f"{where}: {times[0]} to {times[-1]}, not {series.first_time} to {series.last_time}")
    if times[0] < root.start or times[-1] >= root.end:
        raise FormatError(f"{where}: {times[0]} to {times[-1]} in a chunk from {root.start} to {root.end}")


def page_statistics(rows: Rows, column_id: int, group: int) -> Statistics:
    """First, last and sum only of values, and only where they are of one series."""
    start, stop = rows.of_group(group)
    found = summarize(rows, column_id, start, stop)
    if column_id != TIME_COLUMN and rows.are_of_one_series(start, stop):
        return found
    return dataclasses.replace(found, first=None, last=None, sum=None)


def summarize(rows: Rows, column_id: int, start: int, stop: int) -> Statistics:
    """The statistics that the values in some rows should have."""
    cells, values = rows.between(column_id, start, stop)
    positions = np.flatnonzero(cells == VALUE)
    nulls = int(np.count_nonzero(cells == NULL))
    kind = rows.columns[column_id].kind
    if kind == TEXT or not len(positions):
        return Statistics(stop - start, len(positions), nulls, 0, None, None, None, None)
    times = rows.times(start, stop)
    present = values[positions]
    numbers = present[~np.isnan(present)] if kind == FLOAT64 else present
    first, last = ((int(times[row]), value_bits(values[row])) for row in positions[[0, -1]])
    extremes = (value_bits(numbers.min()), value_bits(numbers.max())) if len(numbers) else None
    total = neumaier(present.tolist()) if kind == FLOAT64 else sum(present.tolist())
    nans = len(present) - len(numbers)
    return Statistics(stop - start, len(present), nulls, nans, extremes, first, last, total)


def neumaier(values: list[float]) -> tuple[float, float] | None:
    """The compensated sum in two parts, if all values and both parts are finite."""
    total, compensation = 0.0, 0.0
    for value in values:
        new = total + value
        if abs(total) >= abs(value):
            compensation += (total - new) + value
        else:
            compensation += (value - new) + total
        total = new
    # A value that is not finite makes `total` infinite or NaN for good.
    return (total, compensation) if math.isfinite(total) and math.isfinite(compensation) else None


def compare(where: str, kind: str, stated: Statistics, found: Statistics) -> None:
    for name in ("rows", "present", "nulls", "nans", "first", "last"):
        if getattr(stated, name) != getattr(found, name):
            raise FormatError(f"{where}: {name} {getattr(stated, name)}, the values have {getattr(found, name)}")
    if comparable_range(kind, stated) != comparable_range(kind, found):
        raise FormatError(f"{where}: range {stated.range}, the values have {found.range}")
    if comparable_sum(stated) != comparable_sum(found):
        raise FormatError(f"{where}: sum {stated.sum}, the values have {found.sum}")


def comparable_range(kind: str, statistics: Statistics) -> tuple[float, ...] | None:
    """Floats as numbers: the drawing does not say which of two zeroes is the smaller one."""
    if statistics.range is None or kind != FLOAT64:
        return statistics.range
    return tuple(float_of(bits) for bits in statistics.range)


def comparable_sum(statistics: Statistics) -> tuple[int, ...] | int | None:
    """Floats as bits."""
    return tuple(map(float_bits, statistics.sum)) if isinstance(statistics.sum, tuple) else statistics.sum


# The command line


def rows_of(data: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a chunk, one row group in memory at a time; absent cells are left out, NULL is None."""
    directory = open_chunk(data)
    tags = itertools.chain.from_iterable(itertools.repeat(series.tags, series.rows) for series in directory.series)
    for group in range(len(directory.entries[TIME_COLUMN])):
        columns = {column_id: directory.column(column_id, group) for column_id in directory.kinds}
        cells = {str(column_id): json_cells(column) for column_id, column in columns.items() if column}
        for row, time in enumerate(cells.pop(str(TIME_COLUMN))):
            values = {column_id: column[row] for column_id, column in cells.items() if column[row] is not ...}
            yield {"time": time, "series": next(tags), **values}


def json_cells(column: Column) -> list[Any]:
    """Per row what JSON has for the value, None for NULL, `...` where it is absent."""
    values = column.values if isinstance(column.values, list) else column.values.tolist()
    other = {ABSENT: ..., NULL: None}
    return [
        json_value(value) if cell == VALUE else other[cell]
        for cell, value in zip(column.cells.tolist(), values, strict=True)
    ]


def json_value(value: Any) -> Any:
    """JSON has no NaN and no infinities: they are strings."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else repr(value)
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints the rows of a chunk file as lines of JSON.")
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    try:
        for row in rows_of(file.read_bytes()):
            print(json.dumps(row, allow_nan=False))
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more, and the interpreter would flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (FormatError, OSError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

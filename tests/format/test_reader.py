"""The reader against bytes put together by hand from the drawings, and against the golden files of the Rust side."""

import dataclasses
import itertools
import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import reader
import zstandard
from pcodec import ChunkConfig
from pcodec import standalone as pco
from reader import ABSENT, NULL, VALUE, FormatError, canonical, check_statistics, read_chunk, read_page

GOLDEN = Path(__file__).resolve().parents[2] / "storage-format" / "testdata" / "v1"
FLIPS = 200
FLOAT, INT, UINT, BOOL, TEXT = 1, 2, 3, 4, 5
SIGN = 1 << 63
MASK = (1 << 64) - 1


# Parts, as the drawings write them


def le(size, *values):
    return b"".join((value & (256**size - 1)).to_bytes(size, "little") for value in values)


def varint(*values):
    out = bytearray()
    for value in values:
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def text(value):
    return varint(len(value)) + value


def f64(*values):
    return struct.pack(f"<{len(values)}d", *values)


def bits_of(value):
    return int.from_bytes(f64(value), "little")


def float_of(bits):
    return struct.unpack("<d", le(8, bits))[0]


def word(value):
    """Of a signed integer."""
    return (value & MASK) ^ SIGN


def stream(*bits):
    """A bit stream of strings of zeroes and ones; a float stands for its 64 bits."""
    joined = "".join(f"{bits_of(part):064b}" if isinstance(part, float) else part.replace(" ", "") for part in bits)
    joined += "0" * (-len(joined) % 8)
    return bytes(int(joined[i : i + 8], 2) for i in range(0, len(joined), 8))


def packed(width, *values):
    joined = sum(value << (i * width) for i, value in enumerate(values))
    return joined.to_bytes((len(values) * width + 7) // 8, "little")


def patched(width, *values):
    return le(1, width) + le(2, 0) + le(1, 0) + packed(width, *values)


def zstd(plain):
    return varint(len(plain)) + zstandard.ZstdCompressor().compress(plain)


def pco_file(values):
    return pco.simple_compress(values, ChunkConfig())


def boolean_map(codec, data):
    return le(4, 1 + len(data)) + le(1, codec) + data


def page(kind, rows, *vectors, cells=0, present=None, grid=0, cell_map=b"", dictionary=b""):
    """`vectors` are (codec, bytes)."""
    vectors = [le(1, codec) + data for codec, data in vectors]
    ends = itertools.accumulate(len(vector) for vector in vectors)
    out = le(1, kind, cells, grid, 0) + le(
        4, rows, rows if present is None else present, len(cell_map), len(dictionary)
    )
    out += cell_map + dictionary + le(4, *ends) + b"".join(vectors)
    return out + bytes(-len(out) % 64)


def values(data):
    """Of a page where every row has one: floats as their bits."""
    column = read_page(data)
    assert (column.cells == VALUE).all()
    if isinstance(column.values, list):
        return column.values
    return column.values.view(np.uint64).tolist() if column.kind == "float64" else column.values.tolist()


def one(kind, codec, data, rows, **more):
    return values(page(kind, rows, (codec, data), **more))


def floats(*wanted):
    return [bits_of(value) for value in wanted]


# Codecs


def test_raw_keeps_every_bit():
    bits = [bits_of(1.5), 0x7FF0_0000_0000_0001, SIGN]
    assert one(FLOAT, 0, le(8, *bits), 3) == bits


def test_constant():
    assert one(FLOAT, 1, f64(2.5), 3) == floats(2.5, 2.5, 2.5)
    assert one(INT, 1, le(8, word(-7)), 2) == [-7, -7]
    assert one(UINT, 1, le(8, MASK), 2) == [MASK, MASK]


def test_gorilla():
    # 1.0 and 2.0 differ in bits 1 to 11 from the top.
    data = stream(1.0, "0", "11 00001 001010", "1" * 11, "10", "1" * 11, "0")
    assert one(FLOAT, 2, data, 5) == floats(1.0, 1.0, 2.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "bits",
    ["10" + "1" * 11, "11 11111 111111" + "0" * 64, "0 0000001", "0 0000000 00000000", ""],
    ids=["no window", "a window of too many bits", "spare bit", "spare byte", "too short"],
)
def test_gorilla_refuses(bits):
    with pytest.raises(FormatError, match="vector 0"):
        one(FLOAT, 2, stream(1.0, bits), 2)


def test_alp():
    nan = 0x7FF8_0000_DEAD_BEEF
    d = [15, 0, -3]
    inner = le(1, 5) + le(8, word(-3)) + patched(5, *[value + 3 for value in d])
    head = le(1, 1, 0)
    assert one(FLOAT, 3, head + le(1, 0) + le(2, 1, 1) + le(8, nan) + inner, 3) == [
        bits_of(1.5),
        nan,
        bits_of(-3 * 0.1),
    ]
    # -3 * 0.1 is one ulp beyond -0.3; ulps 0, 0, -1 in a lane of two bits.
    assert -3 * 0.1 != -0.3
    lane = le(1, 2) + le(2, 1, 1) + le(8, nan) + packed(2, 2, 2, 1)
    assert one(FLOAT, 3, head + lane + inner, 3) == [bits_of(1.5), nan, bits_of(-0.3)]


def test_alp_rounds_both_products():
    d, e, f = 123_456_789_012_345, 14, 3
    inner = le(1, 1) + le(8, word(d))
    assert one(FLOAT, 3, le(1, e, f, 0) + le(2, 0) + inner, 1) == floats((float(d) * 1e3) * 1e-14)


@pytest.mark.parametrize(
    ("head", "d"), [(le(1, 19, 0, 0), 1), (le(1, 1, 2, 0), 1), (le(1, 1, 0, 0), 1 << 51), (le(1, 1, 0, 65), 1)]
)
def test_alp_refuses(head, d):
    with pytest.raises(FormatError):
        one(FLOAT, 3, head + le(2, 0) + le(1, 1) + le(8, word(d)), 1)


def test_delta_of_delta():
    # Zigzag deltas of deltas: 10 -> 20, 0, -3 -> 5, 20,000 -> 40,000, ten million -> twenty million, one of 40 bits.
    bits = ["10" + f"{20:014b}", "0", "10" + f"{5:014b}", "110" + f"{40_000:024b}", "1110" + f"{20_000_000:036b}"]
    data = stream(f"{(-100) & MASK:064b}", *bits, "1111" + f"{2 << 40:064b}")
    expected, delta = [-100], 0
    for step in (10, 0, -3, 20_000, 10_000_000, 1 << 40):
        delta += step
        expected.append(expected[-1] + delta)
    assert one(INT, 4, data, 7) == expected


def test_delta_of_delta_wraps():
    data = stream(f"{(1 << 63) - 1:064b}", "10" + f"{2:014b}")
    assert one(INT, 4, data, 2) == [(1 << 63) - 1, -(1 << 63)]


def test_delta_of_delta_is_of_times():
    with pytest.raises(FormatError, match="codec 4"):
        one(UINT, 4, stream("0" * 64), 1)


def test_frame_of_reference():
    assert one(INT, 5, le(8, word(7)) + patched(2, 0, 1, 3), 3) == [7, 8, 10]
    assert one(UINT, 5, le(8, MASK) + patched(2, 0, 1, 3), 3) == [MASK, 0, 2]
    assert one(UINT, 5, le(8, 9) + patched(0), 3) == [9, 9, 9]
    assert one(UINT, 5, le(8, 0) + patched(64, MASK), 1) == [MASK]


def test_patched():
    # 5, 1,000,001 and 2 in two low bits: the high parts of 5 and 1,000,001 are 1 and 250,000.
    data = le(8, 0) + le(1, 2) + le(2, 2) + le(1, 18) + packed(2, 1, 1, 2) + le(2, 0, 1) + packed(18, 1, 250_000)
    assert one(UINT, 5, data, 3) == [5, 1_000_001, 2]


@pytest.mark.parametrize(
    "data",
    [
        le(1, 2) + le(2, 0) + le(1, 1) + packed(2, 1),
        le(1, 2) + le(2, 1) + le(1, 0) + packed(2, 1) + le(2, 0),
        le(1, 60) + le(2, 1) + le(1, 5) + packed(60, 1) + le(2, 0) + packed(5, 1),
        le(1, 2) + le(2, 1) + le(1, 1) + packed(2, 1) + le(2, 1) + packed(1, 1),
        le(1, 65) + le(2, 0) + le(1, 0) + packed(65, 1),
        le(1, 2) + le(2, 0) + le(1, 0) + le(1, 0b101),
        patched(2, 1) + le(1, 0),
        patched(16, 1)[:-1],
    ],
    ids=[
        "high bits without exceptions",
        "exceptions without high bits",
        "more than 64 bits",
        "position behind the end",
        "width",
        "spare bit",
        "spare byte",
        "too short",
    ],
)
def test_patched_refuses(data):
    with pytest.raises(FormatError, match="vector 0"):
        one(UINT, 5, le(8, 0) + data, 1)


@pytest.mark.parametrize("width", [1, 7, 10, 33, 64])
def test_1024_values_are_interleaved(width):
    wanted = [(i * 0x9E37_79B9_7F4A_7C15) >> 5 & ((1 << width) - 1) for i in range(1024)]
    data = bytearray(128 * width)
    for lane in range(16):
        joined = sum(value << (j * width) for j, value in enumerate(wanted[lane::16]))
        for k in range(width):
            at = 8 * (16 * k + lane)
            data[at : at + 8] = le(8, joined >> (64 * k))
    assert one(UINT, 5, le(8, 0) + le(1, width) + le(2, 0) + le(1, 0) + bytes(data), 1024) == wanted


def test_high_parts_are_never_interleaved():
    high = packed(1, *[1] * 1024)
    data = le(8, 0) + le(1, 0) + le(2, 1024) + le(1, 1) + le(2, *range(1024)) + high
    assert one(UINT, 5, data, 1024) == [1] * 1024
    wanted = [1 + (i % 3 == 0) for i in range(1024)]
    high = packed(2, *wanted)
    assert one(UINT, 5, le(8, 0) + le(1, 0) + le(2, 1024) + le(1, 2) + le(2, *range(1024)) + high, 1024) == wanted


def test_delta():
    # Steps 10, 12 and 7 around a centre of 10: zigzag 0, 4 and 5.
    data = le(8, word(-5), 10) + patched(3, 0, 0, 4, 5)
    assert one(INT, 6, data, 4) == [-5, 5, 17, 24]


def test_delta_wraps():
    assert one(UINT, 6, le(8, MASK, 1) + patched(0), 3) == [MASK, 0, 1]


def test_delta_refuses_a_delta_of_the_first():
    with pytest.raises(FormatError, match="first"):
        one(UINT, 6, le(8, 0, 0) + patched(2, 1, 0), 2)


@pytest.mark.parametrize("grid", [0, 1])
def test_runs_of_deltas(grid):
    # 10 three times, then -1 twice.
    assert one(INT, 7, varint(word(-1), 20, 3, 1, 2), 6, grid=grid) == [-1, 9, 19, 29, 28, 27]
    assert one(UINT, 7, varint(5), 1, grid=grid) == [5]


@pytest.mark.parametrize("runs", [[0, 2], [0, 0, 0, 1], [], [0, 1, 0, 1]])
def test_runs_of_deltas_refuse(runs):
    with pytest.raises(FormatError):
        one(UINT, 7, varint(5, *runs), 2)


def test_booleans():
    assert one(BOOL, 8, le(1, 1) + varint(2, 1, 3), 6) == [True, True, False, True, True, True]
    assert one(BOOL, 9, le(1, 0b0000_0101, 0b1), 9) == [True, False, True] + [False] * 5 + [True]
    # Of a bitmap nothing is interleaved.
    wanted = [i % 3 == 0 for i in range(1024)]
    assert one(BOOL, 9, packed(1, *wanted), 1024) == wanted


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (8, le(1, 2) + varint(3)),
        (8, le(1, 0) + varint(4)),
        (8, le(1, 0) + varint(2)),
        (8, le(1, 0) + varint(3, 0)),
        (9, le(1, 0b1000)),
        (9, b""),
        (9, le(1, 0, 0)),
        (1, le(8, 1)),
        (19, b""),
    ],
)
def test_booleans_refuse(codec, data):
    with pytest.raises(FormatError):
        one(BOOL, codec, data, 3)


def test_dictionary_of_text():
    dictionary = zstd(varint(3) + text(b"") + text(b"on") + text("\u00fc".encode()))
    codes = le(1, 5) + le(8, 0) + patched(2, 2, 0, 1, 1)
    assert one(TEXT, 10, codes, 4, dictionary=dictionary) == ["\u00fc".encode(), b"", b"on", b"on"]


def test_dictionary_of_words():
    # Ascending as words: the negative one first.
    dictionary = zstd(varint(2) + le(8, word(-3), word(4)))
    assert one(INT, 10, le(1, 1) + le(8, 0), 2, dictionary=dictionary) == [-3, -3]
    dictionary = zstd(varint(2) + le(8, *floats(4.0, -3.0)))
    assert one(FLOAT, 10, le(1, 17) + le(8, 1, -1), 2, dictionary=dictionary) == floats(-3.0, 4.0)


@pytest.mark.parametrize(
    ("kind", "entries", "inner"),
    [
        (UINT, varint(2) + le(8, 1, 2), le(1, 1) + le(8, 2)),
        (UINT, varint(2) + le(8, 2, 1), le(1, 1) + le(8, 0)),
        (UINT, varint(2) + le(8, 1, 1), le(1, 1) + le(8, 0)),
        (UINT, varint(1) + le(8, 1, 1), le(1, 1) + le(8, 0)),
        (UINT, varint(4097) + le(8, *range(4097)), le(1, 1) + le(8, 0)),
        (UINT, varint(1) + le(8, 1), le(1, 10, 1) + le(8, 0)),
        (TEXT, varint(2) + text(b"b") + text(b"a"), le(1, 1) + le(8, 0)),
        (TEXT, varint(1) + text(b"\xff"), le(1, 1) + le(8, 0)),
        (TEXT, varint(1) + text(b"a"), le(1, 1) + le(8, 1)),
        (BOOL, varint(1) + text(b"a"), le(1, 1) + le(8, 0)),
    ],
    ids=["code", "order", "twice", "left over", "many", "nested", "text order", "utf-8", "text code", "boolean"],
)
def test_dictionary_refuses(kind, entries, inner):
    with pytest.raises(FormatError):
        one(kind, 10, inner, 1, dictionary=zstd(entries))


def test_dictionary_that_is_missing():
    for kind in (UINT, TEXT):
        with pytest.raises(FormatError):
            one(kind, 10, le(1, 1) + le(8, 0), 1)


def test_zstd_of_text():
    plain = varint(2, 0, 3) + b"ab" + b"cde"
    assert one(TEXT, 11, zstd(plain), 3) == [b"ab", b"", b"cde"]


@pytest.mark.parametrize(
    "data",
    [
        varint(1) + zstandard.ZstdCompressor().compress(varint(1) + b"a"),
        varint(3) + zstandard.ZstdCompressor().compress(varint(1) + b"a"),
        varint(3) + zstandard.ZstdCompressor(write_content_size=False).compress(varint(1) + b"a"),
        varint(1 << 40) + zstandard.ZstdCompressor().compress(varint(1) + b"a"),
        zstd(varint(1) + b"a") + b"\x00",
        zstd(varint(1) + b"a")[:-1],
        zstd(varint(2) + b"a"),
        zstd(varint(1) + b"ab"),
        zstd(varint(1) + b"\xff"),
        varint(0),
    ],
)
def test_zstd_refuses(data):
    with pytest.raises(FormatError):
        one(TEXT, 11, data, 1)


def test_gcd():
    inner = le(1, 5) + le(8, 0) + patched(2, 0, 3, 1)
    assert one(INT, 12, le(8, word(-1000)) + varint(250) + inner, 3) == [-1000, -250, -750]


@pytest.mark.parametrize("inner", [le(1, 12) + le(8, 0) + varint(1) + le(1, 1) + le(8, 1), le(1, 10, 1) + le(8, 0)])
def test_gcd_refuses_inside(inner):
    with pytest.raises(FormatError, match="quotients"):
        one(UINT, 12, le(8, 0) + varint(3) + inner, 1)


def test_gcd_refuses_a_divisor_of_zero():
    with pytest.raises(FormatError, match="divisor"):
        one(UINT, 12, le(8, 0) + varint(0) + le(1, 1) + le(8, 1), 1)


ONE_XOR_TWO = bits_of(1.0) ^ bits_of(2.0)


def test_chimp128():
    # 11 bits differ behind one zero: with class 0 twelve bits from the top.
    data = stream(
        1.0,
        "00 0000000",
        "11 000" + f"{ONE_XOR_TWO:064b}",
        "10" + f"{ONE_XOR_TWO:064b}",
        "01 0000010 000 001100 0" + "1" * 11,
        "11 100" + f"{1:046b}",
        "10" + f"{1:046b}",
    )
    assert one(FLOAT, 13, data, 7) == floats(1.0, 1.0, 2.0, 1.0, 1.0, float_of(bits_of(1.0) + 1), 1.0)


def test_chimp128_slots_hold_the_newest_value():
    # 128 times 1.0, then 2.0 into slot 0, 1.0 from slot 1 and 2.0 from slot 0.
    data = stream(1.0, *["00 0000000"] * 127, "11 000" + f"{ONE_XOR_TWO:064b}", "00 0000001", "00 0000000")
    assert one(FLOAT, 13, data, 131) == floats(*[1.0] * 128, 2.0, 1.0, 2.0)


@pytest.mark.parametrize(
    "bits",
    [
        ["10" + "0" * 64],
        ["11 000" + "0" * 64, "00 0000000", "10" + "0" * 64],
        ["11 000" + "0" * 64, "01 0000000 000 000001 0", "10" + "0" * 64],
        ["00 0000001"],
        ["01 0000000 001 111111" + "0" * 63],
        ["01 0000000 000 000000"],
        ["00 0000000", "1"],
    ],
)
def test_chimp128_refuses(bits):
    with pytest.raises(FormatError):
        one(FLOAT, 13, stream(1.0, *bits), 1 + len(bits))


def test_pco():
    wanted = [1.5, -0.0, float("inf")]
    assert one(FLOAT, 14, pco_file(np.array(wanted)), 3, grid=1) == floats(*wanted)
    words = np.array([word(-1), word(5)], np.uint64)
    assert one(INT, 14, pco_file(words), 2, grid=1) == [-1, 5]
    assert one(UINT, 14, pco_file(words), 2, grid=1) == words.tolist()


@pytest.mark.parametrize(
    "data",
    [
        pco_file(np.array([1, 2], np.int64)),
        pco_file(np.array([1], np.uint64)),
        pco_file(np.array([1, 2], np.uint64))[:-1],
        pco_file(np.array([1, 2], np.uint64)) + b"\x00",
        b"",
    ],
    ids=["type", "count", "too short", "spare byte", "empty"],
)
def test_pco_refuses(data):
    with pytest.raises(FormatError, match=r"pco|left over"):
        one(UINT, 14, data, 2, grid=1)


def test_alp_pco():
    data = le(1, 2, 0) + le(4, 1, 1) + f64(float("inf")) + pco_file(np.array([125, 0, -250], np.int64))
    assert one(FLOAT, 15, data, 3, grid=1) == floats(125 * 0.01, float("inf"), -250 * 0.01)


def test_alp_rd():
    entries = [0x3FF0, 0x4000, 0xBFF0]
    rights = [1, 2, 3, 4]
    data = le(1, 48, 3) + le(2, *entries) + le(2, 1)
    data += packed(2, 0, 1, 2, 0) + packed(48, *rights) + le(2, 3) + le(2, 0x7FF8)
    lefts = [0x3FF0, 0x4000, 0xBFF0, 0x7FF8]
    assert one(FLOAT, 16, data, 4) == [left << 48 | right for left, right in zip(lefts, rights, strict=True)]


def test_alp_rd_of_one_entry():
    data = le(1, 63, 1) + le(2, 1) + le(2, 0) + packed(63, 5, 6)
    assert one(FLOAT, 16, data, 2) == [SIGN | 5, SIGN | 6]


@pytest.mark.parametrize(
    "data",
    [
        le(1, 47, 1) + le(2, 0, 0) + packed(47, 1),
        le(1, 48, 0) + le(2, 0) + packed(48, 1),
        le(1, 48, 9) + le(2, *[0] * 9, 0) + packed(4, 0) + packed(48, 1),
        le(1, 48, 3) + le(2, 0, 1, 2, 0) + packed(2, 3) + packed(48, 1),
        le(1, 63, 1) + le(2, 2, 0) + packed(63, 1),
    ],
    ids=["right", "no entry", "nine entries", "code", "left of two bits"],
)
def test_alp_rd_refuses(data):
    with pytest.raises(FormatError):
        one(FLOAT, 16, data, 1)


@pytest.mark.parametrize("grid", [0, 1])
def test_sequence(grid):
    assert one(INT, 17, le(8, word(10), -20), 3, grid=grid) == [10, -10, -30]
    assert one(UINT, 17, le(8, MASK, 1), 3, grid=grid) == [MASK, 0, 1]


def test_zstd_of_words():
    assert one(INT, 18, zstd(le(8, word(-1), word(2))), 2, grid=1) == [-1, 2]
    assert one(FLOAT, 18, zstd(f64(1.0, 2.5)), 2, grid=1) == floats(1.0, 2.5)
    with pytest.raises(FormatError):
        one(UINT, 18, zstd(le(8, 1, 2, 3)), 2, grid=1)


@pytest.mark.parametrize("kind", [FLOAT, INT, UINT, BOOL, TEXT])
@pytest.mark.parametrize("grid", [0, 1])
def test_codecs_of_the_wrong_kind_or_grid(kind, grid):
    """The table of page.md: what is not for this kind is refused before a byte behind the tag is read."""
    vectors = {
        FLOAT: {0, 1, 2, 3, 10, 13, 16},
        INT: {1, 4, 5, 6, 7, 10, 12, 17},
        UINT: {1, 5, 6, 7, 10, 12, 17},
        BOOL: {8, 9},
        TEXT: {10, 11},
    }
    units = {FLOAT: {14, 15, 18}, INT: {7, 14, 17, 18}, UINT: {7, 14, 17, 18}, BOOL: {8, 9}, TEXT: {10, 11}}
    dictionary = b"" if kind == BOOL else zstd(varint(0))
    for codec in set(range(256)) - (units if grid else vectors)[kind]:
        with pytest.raises(FormatError, match=f"vector 0, byte 1: codec {codec} "):
            one(kind, codec, b"", 1, grid=grid, dictionary=dictionary)


# Pages


def test_the_page_of_the_drawing():
    # Three integers, 7, 8 and 10, and a NULL.
    has_value = boolean_map(9, le(1, 0b0111))
    data = page(INT, 4, (5, le(8, word(7)) + patched(2, 0, 1, 3)), cells=1, present=3, cell_map=has_value)
    column = read_page(data)
    assert (column.kind, column.cells.tolist(), column.values.tolist()) == ("int64", [2, 2, 2, 1], [7, 8, 10, 0])
    assert canonical(column) == bytes([2, 4, 0, 0, 0, 2, 2, 2, 1]) + le(8, 7, 8, 10, 0)


def test_cells_of_every_kind():
    has_value = boolean_map(8, le(1, 0) + varint(1, 1, 2))
    for cells, others in ((1, [NULL] * 3), (2, [ABSENT] * 3)):
        column = read_page(page(BOOL, 4, (9, le(1, 1)), cells=cells, present=1, cell_map=has_value))
        assert column.cells.tolist() == [others[0], VALUE, *others[1:]]
        assert column.values.tolist() == [False, True, False, False]
    is_null = boolean_map(9, le(1, 0b101))
    column = read_page(page(TEXT, 4, (11, zstd(varint(1) + b"x")), cells=3, present=1, cell_map=has_value + is_null))
    assert column.cells.tolist() == [NULL, VALUE, ABSENT, NULL]
    assert column.values == [b"", b"x", b"", b""]
    assert canonical(column) == bytes([5, 4, 0, 0, 0, 1, 2, 0, 1]) + le(4, 0, 1) + b"x" + le(4, 0, 0)


def test_no_value_at_all():
    column = read_page(page(FLOAT, 3, cells=2, present=0, cell_map=boolean_map(8, le(1, 0) + varint(3))))
    assert (column.cells.tolist(), column.values.tolist()) == ([ABSENT] * 3, [0.0] * 3)


def test_vectors_of_1024_values():
    vectors = [(17, le(8, word(0), 1)), (17, le(8, word(1024), 1)), (1, le(8, word(2048)))]
    assert values(page(INT, 2049, *vectors)) == list(range(2049))
    with pytest.raises(FormatError):
        values(page(INT, 2049, *vectors[:2]))


GOOD = page(BOOL, 3, (9, le(1, 0b101)))
MAPPED = page(BOOL, 2, (9, le(1, 1)), cells=1, present=1, cell_map=boolean_map(9, le(1, 0b01)))


EVERY_PAGE = [
    MAPPED,
    page(FLOAT, 2, (0, f64(1.0, 2.0))),
    page(FLOAT, 3, (2, stream(1.0, "0", "11 00001 001010", "1" * 11))),
    page(FLOAT, 1, (3, le(1, 1, 1, 2) + le(2, 0) + packed(2, 2) + le(1, 1) + le(8, word(7)))),
    page(INT, 2, (4, stream("0" * 64, "10" + f"{9:014b}"))),
    page(UINT, 1024, (5, le(8, 1) + patched(0))),
    page(UINT, 2, (6, le(8, 1, 2) + le(1, 1) + le(2, 1) + le(1, 3) + packed(1, 0, 1) + le(2, 1) + packed(3, 7))),
    page(INT, 70, (7, varint(word(-5), 3, 69)), grid=1),
    page(BOOL, 9, (8, le(1, 1) + varint(4, 5))),
    page(TEXT, 2, (10, le(1, 17) + le(8, 0, 1)), dictionary=zstd(varint(2) + text(b"a") + text(b"b"))),
    page(UINT, 2, (10, le(1, 17) + le(8, 0, 1)), dictionary=zstd(varint(2) + le(8, 1, 2))),
    page(TEXT, 2, (11, zstd(varint(2, 1) + b"abc"))),
    page(INT, 2, (12, le(8, 9) + varint(5) + le(1, 17) + le(8, 0, 1))),
    page(FLOAT, 3, (13, stream(1.0, "00 0000000", "01 0000000 000 000010 11"))),
    page(FLOAT, 3, (14, pco_file(np.array([1.0, 2.0, 3.0]))), grid=1),
    page(FLOAT, 3, (15, le(1, 2, 1) + le(4, 1, 1) + f64(0.5) + pco_file(np.array([1, 2, 3]))), grid=1),
    page(FLOAT, 2, (16, le(1, 60, 2) + le(2, 1, 2, 1) + packed(1, 0, 1) + packed(60, 7, 8) + le(2, 1, 3))),
    page(INT, 3, (18, zstd(le(8, 1, 2, 3))), grid=1),
]


def at(data, position, *replacement):
    return data[:position] + bytes(replacement) + data[position + len(replacement) :]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (at(GOOD, 0, 0), "kind 0"),
        (at(GOOD, 0, 6), "kind 6"),
        (at(GOOD, 1, 4), "cells 4"),
        (at(GOOD, 2, 2), "grid 2"),
        (at(GOOD, 3, 1), "not zero"),
        (at(GOOD, 8, 2), "2 values of 3"),
        (at(GOOD, 8, 4), "4 values in 3"),
        (at(GOOD, 6, 1), "values in 65539"),
        (at(GOOD, 20, 3), "left over|not zero"),
        (at(GOOD, 20, 255), "are left"),
        (at(GOOD, 63, 1), "not zero"),
        (GOOD + bytes(64), "64 bytes are left over"),
        (GOOD[:-1], "are needed"),
        (at(MAPPED, 12, 5), "map"),
        (at(MAPPED, 20, 1), "map"),
        (at(MAPPED, 24, 1), "map"),
        (at(MAPPED, 25, 0b11), "map of 2 values"),
        (at(MAPPED, 25, 0b101), "map"),
        (page(BOOL, 2, (9, le(1, 1)), cells=1, present=1), "a map of 0 bytes"),
    ],
)
def test_page_refuses(data, what):
    with pytest.raises(FormatError, match=what):
        read_page(data)


def test_every_truncation_of_a_page():
    for data in (GOOD, MAPPED):
        for length in range(len(data)):
            with pytest.raises(FormatError):
                read_page(data[:length])


def test_varints():
    assert reader.Cursor(b"\xff" * 9 + b"\x01", "here").varint() == MASK
    for data in (b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x00", b"\x80", b""):
        with pytest.raises(FormatError, match="here"):
            reader.Cursor(data, "here").varint()


def test_damaged_pages_are_refused_or_other_values():
    """A page has its checksum in the directory: without it a reader may still neither fail otherwise nor hang."""
    rng = random.Random(1)
    for data in EVERY_PAGE:
        read_page(data)
        for _ in range(FLIPS):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
            try:
                read_page(bytes(damaged))
            except FormatError as error:
                assert str(error)


# Keys


def test_the_key_of_the_drawing():
    key = bytes.fromhex("01 70 75 6d 70 00 01 00 01 61 00 ff 00 01")
    assert reader.read_series_key(key) == ["pump", None, "a\0"]
    assert reader.read_series_key(b"") == []


@pytest.mark.parametrize(
    "key", ["00", "01610001 00", "02", "0161", "016100", "01610002", "01ff0001", "01" + "61" * 65536 + "0001"]
)
def test_key_refuses(key):
    with pytest.raises(FormatError):
        reader.read_series_key(bytes.fromhex(key))


# Chunks

ROWS = 4098  # of two series: 4,096 and 2
FIRST = 1_700_000_000_000_000_000
STEP = 1_000_000_000


def ends(*pairs):
    return b"".join(le(8, *pair) for pair in pairs)


def times_page(first, rows):
    return page(INT, rows, (17, le(8, word(first), STEP)), grid=1)


def hand_made_columns():
    """(id, kind, per group (page, counts, flags and what they announce)) of groups of 4,072 and 26 rows.

    Only the first group is all of one series.
    """
    last = [FIRST + 4071 * STEP, FIRST + 4095 * STEP, FIRST + 7, FIRST + 7 + STEP]
    # A step of a second 23 times, back to the second series, a second.
    steps = varint(2 * STEP, 23, -2 * (last[2] - last[1]) - 1, 1, 2 * STEP, 1)
    second = page(INT, 26, (7, varint(word(FIRST + 4072 * STEP)) + steps), grid=1)
    halves = page(FLOAT, 4072, *[(1, f64(0.5))] * 4)
    nan_and_two = [0x7FF8_0000_0000_0000, bits_of(2.0)]
    mixed = page(
        FLOAT,
        26,
        (0, f64(*[0.5] * 23) + le(8, *nan_and_two)),
        cells=1,
        present=25,
        cell_map=boolean_map(8, le(1, 1) + varint(23, 1, 2)),
    )
    switch = page(BOOL, 4072, *[(8, le(1, 0) + varint(1024))] * 3, (8, le(1, 0) + varint(999, 1)))
    note = page(TEXT, 26, (11, zstd(varint(1) + b"x")), cells=2, present=1, cell_map=boolean_map(9, packed(26, 1)))
    half, two = bits_of(0.5), bits_of(2.0)
    whole = [
        (times_page(FIRST, 4072), (4072, 4072, 0, 0), le(1, 1) + le(8, FIRST, last[0])),
        (second, (26, 26, 0, 0), le(1, 1) + le(8, FIRST + 7, last[1])),
    ]
    number = [
        (
            halves,
            (4072, 4072, 0, 0),
            le(1, 7) + le(8, half, half) + ends((FIRST, half), (last[0], half)) + f64(2036, 0),
        ),
        (mixed, (26, 25, 1, 1), le(1, 1) + le(8, half, two)),
    ]
    on = [(switch, (4072, 4072, 0, 0), le(1, 7) + le(8, 0, 1) + ends((FIRST, 0), (last[0], 1)) + le(16, 1)), None]
    notes = [None, (note, (26, 1, 0, 0), le(1, 0))]
    return [(0, INT, whole), (4, FLOAT, number), (9, BOOL, on), (6, TEXT, notes)]


def hand_made_runs():
    """Of the first series, whose last row is the 24th of the second group: NULL in column 4; without zstd."""
    half, last = bits_of(0.5), FIRST + 4094 * STEP
    number = varint(4095, 1, 0) + le(1, 7) + le(8, half, half) + ends((FIRST, half), (last, half)) + f64(2047.5, 0)
    on = varint(4072, 0, 0) + le(1, 7) + le(8, 0, 1) + ends((FIRST, 0), (FIRST + 4071 * STEP, 1)) + le(16, 1)
    return varint(2) + le(4, 4) + le(1, FLOAT) + number + le(4, 9) + le(1, BOOL) + on


def hand_made_series(first_rows=4096, second_rows=2):
    keys = [b"", b"\x00\x01b\x00\x01"]
    first = varint(7) + text(keys[0]) + varint(first_rows) + le(8, FIRST, FIRST + 4095 * STEP)
    return first + varint(3) + text(keys[1]) + varint(second_rows) + le(8, FIRST + 7, FIRST + 7 + STEP)


def hand_made(columns=None, series=None, runs=None, head=None, version=1, features=0):
    """A chunk, whose parts can be replaced by others that have their checksums."""
    out = b"SONDECHK" + le(4, 1) + bytes(52) if head is None else head
    columns = hand_made_columns() if columns is None else columns
    series = hand_made_series() if series is None else series
    runs = zstd(hand_made_runs()) if runs is None else runs
    directory = varint(len(columns[0][2]), len(columns))
    for column_id, kind, groups in columns:
        directory += le(4, column_id) + le(1, kind)
        for group in groups:
            if group is None:
                directory += le(4, 0)
                continue
            data, counts, statistics = group
            directory += le(4, len(data)) + le(8, len(out)) + le(4, zlib.crc32(data), *counts) + statistics
            out += data
    sections = b""
    for part in (series, directory, runs):
        sections += le(8, len(out), len(part)) + le(4, zlib.crc32(part))
        out += part
    root = le(4, version, features) + le(8, 0xC0) + le(4, 5) + le(8, FIRST, FIRST + 7200 * STEP, 10, 20, ROWS, 2)
    root += sections
    return out + root + le(4, len(root), zlib.crc32(root)) + b"SONDECHK"


def test_hand_made_chunk():
    chunk = read_chunk(hand_made())
    assert (chunk.root.chunk_id, chunk.root.table_id, chunk.root.first_seq_no, chunk.root.last_seq_no) == (
        0xC0,
        5,
        10,
        20,
    )
    assert [(one.id, one.tags, one.rows) for one in chunk.series] == [(7, [], 4096), (3, [None, "b"], 2)]
    kinds = {column_id: column.kind for column_id, column in chunk.columns.items()}
    assert kinds == {0: "int64", 4: "float64", 9: "boolean", 6: "text"}
    assert chunk.columns[0].groups[1].values[-3:].tolist() == [FIRST + 4095 * STEP, FIRST + 7, FIRST + 7 + STEP]
    assert (chunk.columns[9].groups[1], chunk.columns[6].groups[0]) == (None, None)
    assert chunk.columns[6].groups[1].values[0] == b"x"
    assert chunk.columns[4].statistics[0].sum == (2036.0, 0.0)
    assert chunk.run_statistics[9][0].last == (FIRST + 4071 * STEP, 1)
    assert chunk.run_statistics[9][0].sum == 1
    check_statistics(chunk)


def test_sums_of_128_bits():
    for total in (-1, (1 << 64) + 2):
        assert reader.read_sum(reader.Cursor(le(16, total), "sum"), "int64") == total


def test_run_statistics_only_of_long_series():
    short = hand_made_series(4095, 3)
    assert read_chunk(hand_made(series=short, runs=b"")).run_statistics == {}
    with pytest.raises(FormatError, match="run statistics, .*without a series of 4096 rows"):
        read_chunk(hand_made(series=short))


def test_run_statistics_that_are_too_large(monkeypatch):
    monkeypatch.setattr(reader, "RUN_STATISTICS_MAX", len(hand_made_runs()) - 1)
    assert read_chunk(hand_made(runs=b"")).run_statistics == {}
    with pytest.raises(FormatError, match=f"run statistics, .*a plain length of {len(hand_made_runs())}"):
        read_chunk(hand_made())


def test_neumaier_is_compensated():
    assert reader.neumaier([1.0, 1e100, 1.0, -1e100]) == (0.0, 2.0)
    assert reader.neumaier([1e308, 1e308]) is None
    assert reader.neumaier([float("nan")]) is None


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(reader.Statistics)])
@pytest.mark.parametrize("of_run", [False, True])
def test_wrong_statistics_are_found(name, of_run):
    chunk = read_chunk(hand_made())
    statistics = chunk.run_statistics[4] if of_run else chunk.columns[4].statistics
    was = getattr(statistics[0], name)
    wrong = (was[0] + 1, was[1]) if isinstance(was, tuple) else was + 1
    for value in (wrong, None):
        statistics[0] = dataclasses.replace(statistics[0], **{name: value})
        with pytest.raises(FormatError, match=f"column 4, .*{name}"):
            check_statistics(chunk)


def test_statistics_of_two_series_are_found():
    columns = hand_made_columns()
    data, counts, _ = columns[1][2][1]
    half, two = bits_of(0.5), bits_of(2.0)
    both = le(1, 3) + le(8, half, two) + ends((FIRST + 4072 * STEP, half), (FIRST + 7 + STEP, two))
    columns[1][2][1] = data, counts, both
    with pytest.raises(FormatError, match="column 4, group 1: first"):
        check_statistics(read_chunk(hand_made(columns)))


def test_every_byte_of_a_hand_made_chunk_counts():
    data = hand_made()
    for position in range(len(data)):
        with pytest.raises(FormatError):
            read_chunk(at(data, position, data[position] ^ 1 << position % 8))


def test_every_truncation_of_a_hand_made_chunk():
    data = hand_made()
    for length in range(0, len(data), 7):
        with pytest.raises(FormatError):
            read_chunk(data[:length])


def changed_columns(change):
    columns = hand_made_columns()
    change(columns)
    return hand_made(columns)


def changed_runs(position, byte):
    """A byte of the plain run statistics: 1 is the column's id, 5 its kind, 8 its NULLs, 10 its flags."""
    return zstd(at(hand_made_runs(), position, byte))


def wrong_counts(columns):
    data, _, statistics = columns[1][2][1]
    columns[1][2][1] = data, (26, 24, 1, 1), statistics


def wrong_flags(columns):
    data, counts, _ = columns[1][2][1]
    columns[1][2][1] = data, counts, le(1, 8)


def wrong_rows(columns):
    columns[1][2][1] = columns[1][2][0]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (lambda: hand_made(version=2), "root, .*version 2"),
        (lambda: hand_made(version=0), "root, .*version 0"),
        (lambda: hand_made(features=1), "feature bits 0x1"),
        (lambda: hand_made(head=b"SONDECHK" + le(4, 2) + bytes(52)), "head, .*version 2"),
        (lambda: hand_made(head=b"SONDECHK" + le(4, 1) + bytes(51) + b"\1"), "head, .*not zero"),
        (lambda: hand_made(head=b"SONDECHK" + le(4, 1) + bytes(116)), "byte 64: the next part"),
        (lambda: hand_made(series=hand_made_series() + b"\0"), "series directory, .*left over"),
        (lambda: hand_made(runs=zstd(hand_made_runs() + b"\0")), "run statistics, .*1 bytes are left over"),
        (lambda: hand_made(runs=zstd(hand_made_runs()) + b"\0"), "run statistics, .*zstd"),
        (lambda: hand_made(runs=zstd(hand_made_runs()[:-1])), "run statistics, .*16 bytes are needed, 15 are left"),
        (lambda: hand_made(runs=hand_made_runs()), "run statistics, .*zstd"),
        (lambda: hand_made(runs=b""), "run statistics, .*nothing, with 1 series of 4096 rows"),
        (lambda: hand_made(runs=zstd(varint(0))), "run statistics, .*not the columns"),
        (lambda: hand_made(runs=changed_runs(1, 5)), "run statistics, .*not column 4 of float64"),
        (lambda: hand_made(runs=changed_runs(5, INT)), "run statistics, .*not column 4 of float64"),
        (lambda: hand_made(runs=changed_runs(8, 2)), "run statistics, .*4095 values, 2 NULLs"),
        (lambda: hand_made(runs=changed_runs(10, 8)), "run statistics, .*flags 0x8"),
        (lambda: changed_columns(lambda columns: columns.reverse()), "page directory"),
        (lambda: changed_columns(lambda columns: columns.append(columns[1])), "page directory, .*column 4"),
        (lambda: changed_columns(wrong_counts), "column 4, group 1, .*says 24"),
        (lambda: changed_columns(wrong_flags), "flags 0x8"),
        (lambda: changed_columns(wrong_rows), r"group 1 have \[26, 4072\]"),
    ],
)
def test_chunk_refuses(data, what):
    with pytest.raises(FormatError, match=what):
        read_chunk(data())


def test_command_line(tmp_path):
    file = tmp_path / "one.chunk"
    file.write_bytes(hand_made())
    command = [sys.executable, reader.__file__, str(file)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    assert len(lines) == ROWS
    assert lines[0] == f'{{"time": {FIRST}, "series": [], "4": 0.5, "9": false}}'
    assert json.loads(lines[4072]) == {"time": FIRST + 4072 * STEP, "series": [], "4": 0.5, "6": "x"}
    assert json.loads(lines[4095]) == {"time": FIRST + 4095 * STEP, "series": [], "4": None}
    assert json.loads(lines[4096]) == {"time": FIRST + 7, "series": [None, "b"], "4": "NaN"}
    file.write_bytes(hand_made()[:-1])
    refused = subprocess.run(command, capture_output=True, check=False, text=True)
    assert refused.returncode == 1
    assert "one.chunk: tail, byte" in refused.stderr


# Golden files of the Rust side


def golden_values():
    """The lines of values.txt: name, rows, crc32 of the canonical form."""
    lines = (GOLDEN / "values.txt").read_text().splitlines()
    return [(name.replace(".bin", ""), int(rows), crc) for name, rows, crc in map(str.split, lines)]


def golden_chunks():
    return sorted(GOLDEN.glob("chunk*.bin"))


def golden_columns():
    """What values.txt should say of the files, as this reader reads them."""
    for file in sorted(GOLDEN.glob("page_*.bin")):
        yield file.stem, read_page(file.read_bytes(), file.name)
    for file in golden_chunks():
        for column_id, column in read_chunk(file.read_bytes()).columns.items():
            for number, group in enumerate(column.groups):
                if group:
                    yield f"{file.stem}:{column_id}:{number}", group


needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="there are no golden files of version 1 yet")


@needs_golden
def test_golden_values():
    found = [(name, len(column.cells), f"{zlib.crc32(canonical(column)):08x}") for name, column in golden_columns()]
    assert sorted(found) == sorted(golden_values())
    assert any(name.startswith("page_") for name, _, _ in found)
    assert golden_chunks()


@needs_golden
def test_golden_statistics():
    for file in golden_chunks():
        check_statistics(read_chunk(file.read_bytes()))


@needs_golden
def test_a_flipped_byte_of_the_golden_chunk():
    data = (GOLDEN / "chunk.bin").read_bytes()
    for sample in range(FLIPS):
        position = sample * (len(data) - 1) // (FLIPS - 1)
        with pytest.raises(FormatError):
            read_chunk(at(data, position, data[position] ^ 0xFF))

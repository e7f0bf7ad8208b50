"""Point Cloud Library's .pcd files: ASCII, binary, compressed.

The format has not changed since 2011. A reader from PyPI would bring two more packages, one of them compiled.
"""

import numpy as np

_KINDS = {"F": "f", "I": "i", "U": "u"}


def parse_pcd(data: bytes, max_bytes: int) -> np.ndarray:
    """Read the points; those that the camera did not see, with NaN as coordinates, are left out.

    Args:
        data: the content of a file.
        max_bytes: a compressed file that unpacks to more is refused.

    Returns:
        (N, 3) float64.

    Raises:
        ValueError: if it is no .pcd file, is cut short or too large, or has no x, y and z.
    """
    header, body = _parse_header(data)
    fields, count = header["FIELDS"], int(header["POINTS"][0])
    kinds = [f"<{_KINDS[kind]}{size}" for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
    repeats = [int(repeat) for repeat in header.get("COUNT", ["1"] * len(fields))]
    row = np.dtype([(f"{i}", *column) for i, column in enumerate(zip(kinds, [(r,) for r in repeats], strict=True))])
    if missing := {"x", "y", "z"} - set(fields):
        raise ValueError(f"points have no {', '.join(sorted(missing))}")
    places = [fields.index(axis) for axis in "xyz"]
    storage = header["DATA"][0]
    if storage == "ascii":
        numbers = np.array(data[body:].split(), dtype="S").astype(np.float64)
        _check_size(len(numbers), count * sum(repeats))
        starts = np.cumsum([0, *repeats])
        points = numbers[: count * sum(repeats)].reshape(count, sum(repeats))[:, starts[places]]
    elif storage == "binary":
        _check_size(len(data) - body, count * row.itemsize)
        rows = np.frombuffer(data, row, count, body)
        points = np.stack([rows[f"{place}"][:, 0] for place in places], axis=1)
    elif storage == "binary_compressed":
        packed, size = (int(number) for number in np.frombuffer(data, "<u4", 2, body))
        if size > max_bytes:
            raise ValueError(f"it unpacks to {size} bytes; more than {max_bytes} are refused")
        unpacked = decompress_lzf(data[body + 8 : body + 8 + packed], size)
        _check_size(len(unpacked), count * row.itemsize)
        ends = np.cumsum([count * row[i].itemsize for i in range(len(fields))])  # field after field, not row after row
        columns = [np.frombuffer(unpacked, kinds[i], count, ends[i] - count * row[i].itemsize) for i in places]
        points = np.stack(columns, axis=1)
    else:
        raise ValueError(f"DATA is {storage!r}; expected ascii, binary or binary_compressed")
    return points[~np.isnan(points).any(axis=1)].astype(np.float64)


def decompress_lzf(data: bytes, size: int) -> bytes:
    """Undo LZF compression.

    The first byte c of a piece says what follows: c + 1 bytes as they are, for c < 32; else a repetition, whose length
    less 2 is in its three high bits (7: plus the next byte), and how far back it is, less 1, in its five low bits and
    the next byte.

    Raises:
        ValueError: if there are not `size` bytes in it.
    """
    out, at = bytearray(), 0
    while at < len(data) and len(out) <= size:
        control, at = data[at], at + 1
        if control < 32:
            out += data[at : at + control + 1]
            at += control + 1
            continue
        more = control >> 5 == 7
        back = data[at + more : at + more + 1]
        if not back:
            break
        length = (control >> 5) + 2 + (data[at] if more else 0)
        distance = ((control & 31) << 8) + back[0] + 1
        if distance > len(out):
            raise ValueError("its compressed points are damaged")
        piece = bytes(out[-distance:][:length])
        out += (piece * (length // len(piece) + 1))[:length]
        at += more + 1
    if len(out) != size:
        raise ValueError("its compressed points are damaged or cut short")
    return bytes(out)


def _parse_header(data: bytes) -> tuple[dict[str, list[str]], int]:
    """Read the words behind each keyword, and where the points begin."""
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = data.find(b"\n", at)
        if end < 0:
            raise ValueError("has no header of a .pcd file")
        key, *words = data[at:end].decode("latin1").split() or ["#"]
        header[key] = words
        at = end + 1
    if missing := {"FIELDS", "SIZE", "TYPE", "POINTS"} - header.keys():
        raise ValueError(f"its header lacks {', '.join(sorted(missing))}")
    return header, at


def _check_size(there: int, needed: int) -> None:
    if there < needed:
        raise ValueError("it ends before the points that its header announces")

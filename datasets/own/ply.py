"""Stanford .ply files, ASCII or binary, of whatever program wrote them.

The reader that trimesh has cannot read binary files of triangles and quads side by side, which common programs write,
and takes an ASCII file that was cut short for whole.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_FACES = ("vertex_indices", "vertex_index")
_END = b"end_header"

# Of each list, by its length, the rows of that length: (rows, length).
Lists = list[np.ndarray]


@dataclass
class _Property:
    """A column: its type and, of a list, the type of the length in front."""

    name: str
    kind: str
    length_kind: str = ""


@dataclass
class _Element:
    """A table of `count` rows."""

    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    def row_type(self, order: str, lengths: list[int]) -> np.dtype:
        """The bytes of a row whose lists have these lengths: fields 0, 1, …, and "length i" in front of list i."""
        fields: list[tuple] = []
        left = iter(lengths)
        for i, column in enumerate(self.properties):
            if column.length_kind:
                fields += [(f"length {i}", order + column.length_kind), (f"{i}", order + column.kind, (next(left),))]
            else:
                fields.append((f"{i}", order + column.kind))
        return np.dtype(fields)


def parse_ply(data: bytes) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read the vertices and the faces.

    Args:
        data: the content of a file.

    Returns:
        Vertices (N, 3) float64, and the faces of each number k of corners, (F, k) int64 into the vertices.

    Raises:
        ValueError: if it is no .ply file, is cut short, or has no vertices with x, y and z.
    """
    order, elements, body = _parse_header(data)
    numbers = _to_numbers(data[body:]) if not order else np.empty(0)
    vertices, faces, at = np.empty((0, 3)), [], 0 if not order else body
    for element in elements:
        columns, at = _read_rows(element, data, order, at) if order else _read_numbers(element, numbers, at)
        if element.name == "vertex":
            if missing := {"x", "y", "z"} - {column.name for column in element.properties if not column.length_kind}:
                raise ValueError(f"vertices have no {', '.join(sorted(missing))}")
            vertices = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
        elif element.name == "face":
            faces = next((columns[name] for name in _FACES if name in columns), [])
        elif element.name == "tristrips" and element.count:
            raise ValueError("holds triangle strips; save it with faces")
    return vertices, [rows.astype(np.int64) for rows in faces]


def _parse_header(data: bytes) -> tuple[str, list[_Element], int]:
    """Read the byte order ("" for ASCII), the tables and where the first of them begins."""
    end = data.find(_END)
    if not data.startswith(b"ply") or end < 0:
        raise ValueError("has no header of a .ply file")
    body = data.index(b"\n", end) + 1
    order, elements = None, []
    for line in data[:end].decode("latin1").splitlines():
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(name, int(count)))
            case ["property", "list", length_kind, kind, name] if elements:
                elements[-1].properties.append(_Property(name, _TYPES[kind], _TYPES[length_kind]))
            case ["property", kind, name] if elements:
                elements[-1].properties.append(_Property(name, _TYPES[kind]))
            case ["format" | "element" | "property", *_]:
                raise ValueError(f"the line {line.strip()!r} of the header means nothing")
    if order is None:
        raise ValueError("the header names no format")
    return order, [element for element in elements if element.properties], body


def _to_numbers(text: bytes) -> np.ndarray:
    return np.array(text.split(), dtype="S").astype(np.float64)


def _read_rows(element: _Element, data: bytes, order: str, at: int) -> tuple[dict[str, np.ndarray | Lists], int]:
    """Read a binary table that begins at byte `at`; returns its columns by name, and where it ends."""
    rows = []
    for _ in range(element.count):
        lengths, end = _lengths(element, data, order, at)
        kind = element.row_type(order, lengths)
        if not rows and at + element.count * kind.itemsize <= len(data):
            table = np.frombuffer(data, kind, element.count, at)
            if all((table[name] == table[name][0]).all() for name in kind.names or () if name.startswith("length")):
                columns = {
                    column.name: [table[f"{i}"]] if column.length_kind else table[f"{i}"]
                    for i, column in enumerate(element.properties)
                }
                return columns, at + table.nbytes
        if end > len(data):
            raise _cut_short(element)
        row = np.frombuffer(data, kind, 1, at)[0]
        rows.append([row[f"{i}"] for i in range(len(element.properties))])
        at = end
    return _columns(element, rows), at


def _lengths(element: _Element, data: bytes, order: str, at: int) -> tuple[list[int], int]:
    """Read how long the lists of a binary row are, and where the row ends."""
    lengths = []
    for column in element.properties:
        size = np.dtype(column.kind).itemsize
        if not column.length_kind:
            at += size
            continue
        kind = np.dtype(order + column.length_kind)
        if at + kind.itemsize > len(data):
            raise _cut_short(element)
        lengths.append(_length(np.frombuffer(data, kind, 1, at)[0], element))
        at += kind.itemsize + lengths[-1] * size
    return lengths, at


def _read_numbers(element: _Element, numbers: np.ndarray, at: int) -> tuple[dict[str, np.ndarray | Lists], int]:
    """Read an ASCII table that begins at number `at`; returns its columns by name, and where it ends."""
    if element.count * len(element.properties) > len(numbers) - at:
        raise _cut_short(element)
    if not any(column.length_kind for column in element.properties):
        end = at + element.count * len(element.properties)
        table = numbers[at:end].reshape(element.count, len(element.properties))
        return {column.name: table[:, i] for i, column in enumerate(element.properties)}, end
    rows = []
    for _ in range(element.count):
        row = []
        for column in element.properties:
            size = 1
            if column.length_kind:
                size = _length(numbers[at], element) if at < len(numbers) else len(numbers)
                at += 1
            if at + size > len(numbers):
                raise _cut_short(element)
            row.append(numbers[at : at + size] if column.length_kind else numbers[at])
            at += size
        rows.append(row)
    return _columns(element, rows), at


def _columns(element: _Element, rows: list[list]) -> dict[str, np.ndarray | Lists]:
    """Turn rows into columns; of a list, the rows of each length go together."""
    columns: dict[str, np.ndarray | Lists] = {}
    for i, column in enumerate(element.properties):
        values = [row[i] for row in rows]
        if column.length_kind:
            grouped = itertools.groupby(sorted(values, key=len), key=len)
            columns[column.name] = [np.stack(list(group)) for _, group in grouped]
        else:
            columns[column.name] = np.array(values)
    return columns


def _length(value: float, element: _Element) -> int:
    if not value >= 0 or value != int(value):
        raise ValueError(f"a list of {element.name} has the length {value}")
    return int(value)


def _cut_short(element: _Element) -> ValueError:
    return ValueError(f"it ends before the {element.count} rows of {element.name} that its header announces")

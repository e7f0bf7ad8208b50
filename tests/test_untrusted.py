"""Border checks: hostile and damaged pickles, paths, arrays."""

import contextlib
import os
import pickle
import struct
from fractions import Fraction

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import untrusted
from datasets.untrusted import (
    check_labels,
    check_points,
    load_pickle,
    read_h5,
    read_npy,
    require_file,
    require_folder,
    safe_join,
)

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(4, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(12).reshape(3, 4)[:, ::2],
    np.arange(3, dtype=">i4"),
    np.zeros((0, 3), dtype=np.float32),
    np.array(7, dtype=np.int32),
    np.array([True, False]),
    np.array(["chair", "lamp"]),
    np.array([1 + 2j]),
]


def dump(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_as_numpy_itself_reads_them(tmp_path, protocol):
    path = dump(tmp_path / "arrays.pkl", ARRAYS, protocol)
    loaded, expected = load_pickle(path), pickle.loads(path.read_bytes())
    for ours, numpys in zip(loaded, expected, strict=True):
        assert type(ours) is np.ndarray
        assert ours.dtype == numpys.dtype
        assert np.array_equal(ours, numpys)


@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_numpy_1_and_2_are_read(tmp_path, core, protocol):
    data = pickle.dumps([np.arange(6.0), np.float32(2.5)], protocol=protocol)
    data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", core)  # names end in a newline
    (tmp_path / "a.pkl").write_bytes(data)
    array, scalar = load_pickle(tmp_path / "a.pkl")
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    assert scalar == np.float32(2.5)
    assert scalar.dtype == np.float32


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=100, deadline=None)
def test_plain_containers_come_back_equal(tmp_path_factory, value, protocol):
    path = dump(tmp_path_factory.getbasetemp() / "plain.pkl", value, protocol)
    assert load_pickle(path) == value


class Runs:
    """Pickles to a call of any function, as an attacker's object would."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Runs(os.system, "touch executed"),
        Runs(eval, "open('executed', 'w')"),
        Runs(getattr, "text", "upper"),
        Runs(np.load, "x.npy"),
        Fraction(1, 2),
        {1, 2},
        np.random.default_rng,
    ],
    ids=["os.system", "eval", "getattr", "numpy.load", "other class", "set", "function"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_everything_else_is_refused_and_nothing_runs(tmp_path, monkeypatch, value, protocol):
    monkeypatch.chdir(tmp_path)
    path = dump(tmp_path / "evil.pkl", [value], protocol)
    with pytest.raises(ValueError, match=r"evil\.pkl: not a pickle of plain arrays"):
        load_pickle(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], dtype=object),
        np.zeros(2, dtype=[("x", "f4"), ("y", "O")]),
        np.zeros(2, dtype=[("x", "f4")]),
        np.zeros(2, dtype="datetime64[s]"),
    ],
    ids=["object", "structured object", "structured", "datetime"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_other_types_are_refused(tmp_path, array, protocol):
    with pytest.raises(ValueError, match="refused"):
        load_pickle(dump(tmp_path / "a.pkl", array, protocol))


def forged_array(shape, data, dtype_state=(3, "<", None, None, None, -1, -1, 0)):
    """A protocol-2 pickle of an array whose state is ours to choose."""

    class DType:
        def __reduce__(self):
            return np.dtype, ("f4", False, True), dtype_state

    class Array:
        def __reduce__(self):
            reconstruct, arguments, _ = np.zeros(1).__reduce__()
            return reconstruct, arguments, (1, shape, DType(), False, data)

    return pickle.dumps(Array(), protocol=2)


def test_a_forged_state_that_fits_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(forged_array((2,), struct.pack("<2f", 1, 2)))
    assert load_pickle(tmp_path / "a.pkl").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("shape", "data"),
    [((10**12,), b"1234"), ((-1, -1), b"1234"), ((1,), b"12345"), ((1,), ["object"]), (("1",), b"1234")],
    ids=["huge", "negative", "too long", "object list", "text as size"],
)
def test_array_states_that_do_not_fit_are_refused(tmp_path, shape, data):
    (tmp_path / "a.pkl").write_bytes(forged_array(shape, data))
    with pytest.raises(ValueError, match=r"a\.pkl"):
        load_pickle(tmp_path / "a.pkl")


def test_flags_in_a_dtype_never_reach_numpy(tmp_path):
    flags = (3, "<", None, ("x",), {"x": ("f4", 0)}, 64, 1, 0x3F)  # fields, size and reference flags of an object type
    (tmp_path / "a.pkl").write_bytes(forged_array((1,), struct.pack("<f", 1), flags))
    loaded = load_pickle(tmp_path / "a.pkl")
    assert loaded.dtype == np.dtype("f4")
    assert loaded.dtype.itemsize == 4
    assert not loaded.dtype.hasobject


def test_a_pickle_cannot_change_our_functions(tmp_path):
    reconstruct = np.zeros(1).__reduce__()[0]
    attack = b"\x80\x02c" + reconstruct.__module__.encode() + b"\n_reconstruct\nN}U\x0c__defaults__K\x01\x85s\x86b."
    (tmp_path / "a.pkl").write_bytes(attack)
    with pytest.raises(ValueError, match="it holds a function"):
        load_pickle(tmp_path / "a.pkl")
    assert load_pickle(dump(tmp_path / "b.pkl", np.arange(3))).tolist() == [0, 1, 2]
    assert untrusted._reconstruct.__defaults__ is None


def test_nested_sharing_does_not_blow_up(tmp_path):
    value = [1.0]
    for _ in range(60):  # 2**60 leaves if sharing were lost
        value = [value, value]
    loaded = load_pickle(dump(tmp_path / "a.pkl", value))
    assert loaded[0] is loaded[1]


def test_a_list_that_holds_itself_is_refused(tmp_path):
    value = []
    value.append(value)
    with pytest.raises(ValueError, match=r"a\.pkl"):
        load_pickle(dump(tmp_path / "a.pkl", value))


@pytest.mark.parametrize("code", [b"r\xff\xff\xff\x7f", b"p2000000000\n"], ids=["LONG_BINPUT", "PUT"])
def test_a_small_file_cannot_ask_for_a_large_memo(tmp_path, code):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02]" + code + b".")  # an unchecked unpickler allocates over 16 GB
    with pytest.raises(ValueError, match=r"bomb\.pkl: .*memo index 2"):
        load_pickle(path)


PROMISED = {np.ndarray, list, tuple, dict, str, bytes, int, float, bool, type(None)}


def types_in(value):
    """Types of a value and of all it contains."""
    parts = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {type(value)}.union(*map(types_in, parts))


@given(cut=st.integers(0, 400), position=st.integers(0, 399), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_damaged_pickles_raise_only_value_error(tmp_path_factory, cut, position, byte):
    data = bytearray(pickle.dumps([np.arange(20, dtype=np.float32), {"a": (1, "b")}], protocol=2))
    data[position % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(data[:cut])
    with contextlib.suppress(ValueError):  # a changed byte may leave a readable pickle
        assert PROMISED.issuperset(types_in(load_pickle(path)))


def test_too_large_and_missing_pickles(tmp_path):
    path = dump(tmp_path / "a.pkl", list(range(100)))
    with pytest.raises(ValueError, match="more than 50 is refused"):
        load_pickle(path, max_bytes=50)
    with pytest.raises(FileNotFoundError, match=r"b\.pkl does not exist.*data/README\.md"):
        load_pickle(tmp_path / "b.pkl")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", ".", "a\\..\\x", "C:x", "a\0b"])
def test_safe_join_refuses_ways_out(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of"):
        safe_join(tmp_path, name)


@pytest.mark.parametrize("name", ["a.npy", "chair/chair_0001.txt", "..a/b..c"])
def test_safe_join_joins(tmp_path, name):
    assert safe_join(tmp_path, name) == tmp_path / name


def test_check_points_names_file_and_row_of_a_value_that_is_not_finite():
    points = np.zeros((5, 3), dtype=np.float32)
    points[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"a\.npy: row 3"):
        check_points(points, "a.npy", (5, 3))
    batch = np.stack([np.zeros((5, 3)), points])
    batch[1, 2, 0] = np.inf
    with pytest.raises(ValueError, match=r"a\.h5: cloud 1, row 2"):
        check_points(batch, "a.h5", (None, 5, 3))
    with pytest.raises(ValueError, match="row 0"):
        check_points(np.full((1, 3), 1e300), "a.npy", (1, 3))


@pytest.mark.parametrize("shape", [(5, 2), (4, 3), (5,), (1, 5, 3), (0, 3)])
def test_check_points_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"a\.npy: shape .*expected \(5, 3\)"):
        check_points(np.zeros(shape), "a.npy", (5, 3))


@pytest.mark.parametrize("points", [np.zeros((5, 3), int), np.zeros((5, 3), "S2"), [[0.0] * 3] * 5])
def test_check_points_refuses_other_types(points):
    with pytest.raises(ValueError, match=r"a\.npy: holds .*expected floats"):
        check_points(points, "a.npy", (5, 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_check_labels_takes_whole_numbers_of_any_type(dtype):
    labels = check_labels(np.array([[0], [2]], dtype=dtype), "a.h5", 3)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 2]


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_called_so(tmp_path):
    (tmp_path / "train.txt").mkdir()
    with pytest.raises(ValueError, match=r"train\.txt is a folder where a file is expected \(config key DATA_PATH\)"):
        require_file(tmp_path / "train.txt", "DATA_PATH")
    (tmp_path / "data").touch()
    with pytest.raises(ValueError, match=r"DATA_PATH is .*/data, which is a file; give the path of a folder"):
        require_folder(tmp_path / "data", "DATA_PATH")


@pytest.mark.parametrize("labels", [[0, 3], [0, -1], [0, 1.5], [0, np.nan]])
def test_check_labels_names_the_row(labels):
    with pytest.raises(ValueError, match=r"label -1 of cloud 0; expected an integer from 0$"):
        check_labels(np.array([-1, 2]), "a.h5")
    with pytest.raises(ValueError, match="of cloud 1; expected an integer from 0 to below 3"):
        check_labels(np.array(labels), "a.h5", 3)


def test_npy_with_pickled_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([None, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: not a readable \.npy array"):
        read_npy(tmp_path / "a.npy", (None, 3), "PC_PATH")


@pytest.mark.parametrize("size", [0, 5, 40, 150])
def test_truncated_npy_is_refused(tmp_path, size):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((8, 3), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"a\.npy: not a readable \.npy array"):
        read_npy(path, (8, 3), "PC_PATH")


def write_h5(path, data, label):
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, label
    return path


def test_h5_is_read_with_the_first_points(tmp_path):
    data = np.arange(2 * 4 * 3, dtype=np.float64).reshape(2, 4, 3)
    points, labels = read_h5(write_h5(tmp_path / "a.h5", data, np.array([[1], [0]], np.uint8)), "ROOT", 2)
    assert points.dtype == np.float32
    assert np.array_equal(points, data[:, :2])
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("data", "label", "message"),
    [
        (np.zeros((2, 4)), [0, 1], r"data \(2, 4\).*expected \(n, points, 3\)"),
        (np.zeros((2, 4, 2)), [0, 1], r"data \(2, 4, 2\).*expected \(n, points, 3\)"),
        (np.zeros((2, 4, 3), int), [0, 1], "int64; expected floats"),
        (np.zeros((2, 4, 3)), [0, 1, 2], r"label \(3,\)"),
        (np.zeros((0, 4, 3)), np.zeros(0, int), "there must be a cloud"),
        (np.zeros((2, 4, 3)), [b"a", b"b"], "labels are"),
        (np.zeros((2, 1, 3)), [0, 1], "clouds have 1 points; 2 are asked for"),
        (0.0, 0, r"data \(\)"),
    ],
)
def test_h5_of_another_layout_is_refused(tmp_path, data, label, message):
    with pytest.raises(ValueError, match=r"a\.h5: .*" + message):
        read_h5(write_h5(tmp_path / "a.h5", data, label), "ROOT", 2)


def test_h5_without_the_arrays_names_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["points"] = [1]
        file.create_group("label")
    with pytest.raises(ValueError, match=r"holds \['label', 'points'\]; expected the arrays 'data' and 'label'"):
        read_h5(tmp_path / "a.h5", "ROOT")


def test_damaged_h5_is_refused(tmp_path):
    path = write_h5(tmp_path / "a.h5", np.zeros((50, 4, 3)), np.zeros(50, int))
    content = path.read_bytes()
    for damaged in (b"<html>not found</html>", b"", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.h5: not a readable \.h5 file"):
            read_h5(path, "ROOT")


def test_h5_that_claims_a_huge_array_is_refused_unread(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", shape=(10**9, 2048, 3), dtype="f4", chunks=(1, 2048, 3))
        file["label"] = [0]
    with pytest.raises(ValueError, match=r"data \(1000000000, 2048, 3\)"):
        read_h5(tmp_path / "a.h5", "ROOT")

"""Readers of clouds and meshes, on files as real programs write them, and on damaged ones."""

import builtins
import io
import struct
import sys
import zipfile

import laspy
import numpy as np
import pytest
import trimesh

from datasets.own import formats
from datasets.own.formats import FORMATS, INSTALL, MissingLibrary, read_points
from datasets.own.pcd import decompress_lzf

CORNERS = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], dtype=float)  # of a rectangle of area 2, in z = 0
CLOUD = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]], dtype=float)


def read(tmp_path, name, data, num_points=64, seed=0):
    """Points that a file with this content gives, as they are in it."""
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_points(path, num_points, np.random.default_rng(seed), centred=False)[0]


def refused(tmp_path, name, data):
    """The message about a file, without its path, which must stand in front."""
    with pytest.raises(ValueError) as caught:
        read(tmp_path, name, data)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / name}: ")


def same_points(points, expected):
    """Whether points are the expected ones, in any order."""
    return np.array_equal(np.unique(points, axis=0), np.unique(np.asarray(expected, dtype=np.float32), axis=0))


def on_rectangle(points, num_points=64):
    """Whether points are drawn from all of the rectangle of `CORNERS`."""
    low, high = points.min(axis=0), points.max(axis=0)
    inside = (low >= (0, 0, 0)).all() and (high <= (2, 1, 0)).all()
    return points.shape == (num_points, 3) and inside and ((high - low)[:2] > (1.6, 0.8)).all()


# ---- arrays and text ----


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", npy(np.hstack([CLOUD, CLOUD]))),
        ("a.NPY", npy(CLOUD.astype(np.int16))),
        ("a.npz", npz(anything=CLOUD)),
        ("a.npz", npz(label=np.array(3), points=CLOUD.astype(np.float32))),
        ("a.xyz", "1 2 3\n4 5 6\n7 8 10\n"),
        ("a.txt", "# a scan\n\n1,2,3,0.5\r\n4,5,6,0.5\r\n7,8,10,0.5\r\n"),
        ("a.txt", "//x y z\n1;2;3\n4;5;6\n7;8;10\n"),
        ("a.csv", '\ufeff"label","z","Y","x"\n9,3,2,1\n9,6,5,4\n9,10,8,7\n'),
        ("a.csv", "first,second,third\n1,2,3\n4,5,6\n7,8,10\n"),
    ],
)
def test_arrays_and_text(tmp_path, name, data):
    assert same_points(read(tmp_path, name, data), CLOUD)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.npy", npy(np.zeros((3, 1024))), "holds float64 (3, 1024); expected numbers (points, columns)"),
        ("a.npy", npy(np.zeros((5, 2))), "holds float64 (5, 2); expected"),
        ("a.npy", npy(np.zeros((0, 3))), "holds no points and no surface"),
        ("a.npz", npz(a=CLOUD, b=CLOUD), "holds the arrays a, b; name that of the points 'points'"),
        ("a.txt", "1 2 3\n4 five 6\n", "not a readable .txt file (could not convert string 'five'"),
        ("a.txt", "1 2 3\n4 nan 6\n", "row 1 (counted from 0) is not finite"),
        ("a.txt", "1 2\n3 4\n", "not a readable .txt file (invalid column index 2"),
        ("a.csv", "x,y,z\n", "not a readable .csv file (holds no line of numbers)"),
        ("a.xyz", "", "not a readable .xyz file (holds no line of numbers)"),
        ("a.xyz", b"\x93\xff\x00", "not a readable .xyz file ('utf-8' codec"),
    ],
)
def test_arrays_and_text_that_are_refused(tmp_path, name, data, reason):
    assert reason in refused(tmp_path, name, data)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (builtins.print, ("the file ran code",))

    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert "allow_pickle=False" in refused(tmp_path, "a.npy", file.getvalue())
    assert "allow_pickle=False" in refused(tmp_path, "a.npz", npz(points=np.array([Bomb()], dtype=object)))


def test_sizes_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_BYTES", 2000)
    zeros = np.zeros((1000, 3))
    assert refused(tmp_path, "a.npy", npy(zeros)) == "24128 bytes; an object of more than 2000 is refused"
    packed = npz(points=zeros)
    assert len(packed) < 2000 < sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(packed)).infolist())
    assert "it unpacks to 24128 bytes; more than 2000 are refused" in refused(tmp_path, "a.npz", packed)
    assert "it unpacks to 2001 bytes" in refused(tmp_path, "a.pcd", pcd_compressed(b"", 2001, 0))
    scene = trimesh.Scene()
    for i in range(8):
        scene.add_geometry(box(), geom_name="box", transform=np.eye(4) * (i + 1))
    monkeypatch.setattr(formats, "MAX_BYTES", len(scene.export(file_type="glb")))
    assert "it unpacks to more than" in refused(tmp_path, "a.glb", scene.export(file_type="glb"))


# ---- .ply ----


def ply_header(order, vertex, face="", vertices=4, faces=0, count="uchar", index="int", name="vertex_indices"):
    lines = ["ply", f"format {order} 1.0", "comment made by hand", "obj_info any", f"element vertex {vertices}"]
    lines += [f"property {column}" for column in vertex.split(", ")]
    if faces:
        lines += [f"element face {faces}", *(f"property {column}" for column in face.split(", ") if column)]
        lines += [f"property list {count} {index} {name}"]
    return "\n".join([*lines, "end_header\n"])


PLAIN = "float x, float y, float z"


def test_ply_of_points_alone(tmp_path):
    header = ply_header("ascii", PLAIN, vertices=3)
    text = "1 2 3\n4 5 6\n7 8 10\n"
    assert same_points(read(tmp_path, "a.ply", header + text), CLOUD)
    assert same_points(read(tmp_path, "a.ply", (header + text).replace("\n", "\r\n")), CLOUD)
    none = header.replace("end_header", "element face 0\nproperty list uchar int vertex_indices\nend_header")
    assert same_points(read(tmp_path, "a.ply", none + text), CLOUD)


@pytest.mark.parametrize(("order", "sign"), [("binary_little_endian", "<"), ("binary_big_endian", ">")])
@pytest.mark.parametrize(
    ("faces", "count", "index", "name"),
    [
        ([[0, 1, 2], [0, 2, 3]], "uchar", "int", "vertex_indices"),
        ([[0, 1, 2, 3]], "uint8", "uint32", "vertex_index"),
        ([[0, 1, 2], [0, 1, 2, 3]], "int", "ushort", "vertex_indices"),  # Blender writes triangles beside quads
    ],
)
def test_binary_ply_with_other_orders_types_and_properties(tmp_path, order, sign, faces, count, index, name):
    vertex, face = "float nx, double z, double x, uchar red, double y", "float quality"
    data = ply_header(order, vertex, face, 4, len(faces), count, index, name).encode()
    for x, y, z in CORNERS:
        data += struct.pack(f"{sign}fddBd", 9.0, z, x, 255, y)
    letter = {"uchar": "B", "uint8": "B", "int": "i", "uint32": "I", "ushort": "H"}
    for corners in faces:
        data += struct.pack(f"{sign}f{letter[count]}{len(corners)}{letter[index]}", 0.5, len(corners), *corners)
    assert on_rectangle(read(tmp_path, "a.ply", data))
    assert "it ends before the" in refused(tmp_path, "a.ply", data[:-1])


def test_ascii_ply_with_lists_and_other_elements(tmp_path):
    header = ply_header("ascii", "float x, float y, float z, list uchar int neighbours", "", 4, 2)
    header = header.replace("element face", "element camera 1\nproperty float f\nelement face")
    header = header.replace("end_header", "property list uchar float texcoord\nend_header")
    rows = "".join(f"{x} {y} {z} 2 7 7\n" for x, y, z in CORNERS) + "1.5\n4 0 1 2 3 2 0.5 0.5\n3 0 1 2 0\n"
    assert on_rectangle(read(tmp_path, "a.ply", header + rows))
    assert "it ends before the 2 rows of face" in refused(tmp_path, "a.ply", header + rows[:-2])


def test_ply_of_one_face_type_in_which_a_list_is_empty(tmp_path):
    data = ply_header("binary_little_endian", PLAIN, faces=2).encode() + CORNERS.astype("<f4").tobytes()
    assert on_rectangle(read(tmp_path, "a.ply", data + struct.pack("<BB4i", 0, 4, 0, 1, 2, 3)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("solid a", "has no header of a .ply file"),
        (ply_header("ascii", PLAIN, vertices=2) + "1 2 3\n4 5\n", "it ends before the 2 rows of vertex"),
        (ply_header("binary_little_endian", PLAIN, vertices=10**15) + "1234", "it ends before the"),
        (ply_header("binary_little_endian", PLAIN, vertices=-5), "'element vertex -5' of the header means nothing"),
        (ply_header("ascii", "float x, float y", vertices=1) + "1 2\n", "vertices have no z"),
        (ply_header("ascii", "float x, float y, half z", vertices=1) + "1 2 3\n", "not a readable .ply file ('half')"),
        (ply_header("utf8", PLAIN, vertices=1) + "1 2 3\n", "'format utf8 1.0' of the header means nothing"),
        (ply_header("ascii", PLAIN, vertices=1) + "1 nan 3\n", "row 0 (counted from 0) is not finite"),
        (ply_header("ascii", PLAIN, vertices=0), "holds no points and no surface"),
        (ply_header("ascii", PLAIN, vertices=3, faces=1) + "0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", "a face has corner 9"),
        (ply_header("ascii", PLAIN, vertices=3, faces=1) + "0 0 0\n1 0 0\n0 1 0\n-3 0 1 2\n", "has the length -3"),
        (
            ply_header("ascii", PLAIN, vertices=3, faces=1) + "0 0 nan\n1 0 0\n0 1 0\n3 0 1 2\n",
            "1 of 1 triangles have a corner that is not finite",
        ),
        (
            ply_header("ascii", PLAIN, vertices=3, faces=1) + "0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n",
            "its 1 triangles have the area 0; there is nothing to draw from",
        ),
        (
            ply_header("ascii", PLAIN, "", 3, 1).replace("face", "tristrips") + "0 0 0\n1 0 0\n0 1 0\n2 0 1\n",
            "holds triangle strips; save it with faces",
        ),
    ],
)  # fmt: skip
def test_ply_that_is_refused(tmp_path, data, reason):
    assert reason in refused(tmp_path, "a.ply", data)


# ---- .pcd ----


def pcd_header(storage, points, fields="x y z rgb", size="4 4 8 4", kind="F F F U", count="1 1 1 1"):
    return (
        f"# .PCD v.7\nVERSION .7\nFIELDS {fields}\nSIZE {size}\nTYPE {kind}\nCOUNT {count}\nWIDTH {points}\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {storage}\n"
    ).encode()


def pcd_compressed(packed, size, points):
    return pcd_header("binary_compressed", points) + struct.pack("<II", len(packed), size) + packed


def literal(data):
    """Data as LZF writes what repeats nothing."""
    return b"".join(bytes([len(part) - 1]) + part for part in (data[i : i + 32] for i in range(0, len(data), 32)))


def test_pcd(tmp_path):
    text = "1 2 3 255\nnan nan nan 0\n4 5 6 255\n7 8 10 255\n"
    assert same_points(read(tmp_path, "a.pcd", pcd_header("ascii", 4) + text.encode()), CLOUD)
    rows = b"".join(struct.pack("<ffdI", x, y, z, 255) for x, y, z in CLOUD)
    assert same_points(read(tmp_path, "a.pcd", pcd_header("binary", 3) + rows), CLOUD)
    columns = struct.pack("<3f3f3d3I", *CLOUD.T.ravel(), 255, 255, 255)
    assert same_points(read(tmp_path, "a.pcd", pcd_compressed(literal(columns), len(columns), 3)), CLOUD)


def test_pcd_with_padding_and_repeated_fields(tmp_path):
    header = pcd_header("binary", 3, "_ x histogram y z _", "1 4 4 4 4 1", "U F F F F U", "3 1 5 1 1 2")
    rows = b"".join(struct.pack("<3xf5fff2x", x, 1, 2, 3, 4, 5, y, z) for x, y, z in CLOUD)
    assert same_points(read(tmp_path, "a.pcd", header + rows), CLOUD)
    text = "".join(f"0 0 0 {x} 1 2 3 4 5 {y} {z} 0 0\n" for x, y, z in CLOUD).encode()
    assert same_points(read(tmp_path, "a.pcd", header.replace(b"DATA binary", b"DATA ascii") + text), CLOUD)


def test_lzf():
    """A reference of 3 bytes that overlaps itself, and a long one of 7 + 2 + 4 bytes, written out by hand."""
    assert decompress_lzf(b"\x01ab" + b"\x20\x01" + b"\x00c", 6) == b"ababac"
    assert decompress_lzf(b"\x00a" + b"\xe0\x04\x00", 14) == b"a" * 14
    for damaged in (b"\x00a\x20\x05", b"\x00a\xe0\x04", b"\x00a"):
        with pytest.raises(ValueError, match="damaged"):
            decompress_lzf(damaged, 4)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"ply\n", "has no header of a .pcd file"),
        (b"VERSION .7\nDATA ascii\n", "its header lacks FIELDS, POINTS, SIZE, TYPE"),
        (pcd_header("ascii", 3) + b"1 2 3 4\n", "it ends before the points that its header announces"),
        (pcd_header("binary", 10**12) + b"1234", "it ends before the points that its header announces"),
        (pcd_header("ascii", 1, "x y w rgb") + b"1 2 3 4\n", "points have no z"),
        (pcd_header("zip", 1), "DATA is 'zip'; expected ascii, binary or binary_compressed"),
        (pcd_header("ascii", 0), "holds no points and no surface"),
        (pcd_header("ascii", 1) + b"nan nan nan 0\n", "holds no points and no surface"),
        (pcd_compressed(literal(b"1234"), 60, 3), "its compressed points are damaged or cut short"),
    ],
)
def test_pcd_that_is_refused(tmp_path, data, reason):
    assert reason in refused(tmp_path, "a.pcd", data)


# ---- meshes ----

OBJ = """mtllib ../../elsewhere.mtl
v 0 0 0
v 2 0 0 1.0 0.5 0.5
v 2 1 0
v 0 1 0
vt 0 0
vn 0 0 1
usemtl wood
{}
"""
STL = (
    "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 2 0 0\nvertex 2 1 0\nendloop\nendfacet\n"
    "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 2 1 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid a\n"
)
OFF = "0 0 0\n2 0 0\n2 1 0\n0 1 0\n4 0 1 2 3\n"


def box():
    return trimesh.creation.box((1, 1, 1))


def binary_stl(faces):
    rows = b"".join(struct.pack("<12fH", 0, 0, 1, *CORNERS[list(face)].ravel(), 0) for face in faces)
    return b"solid by a program".ljust(80) + struct.pack("<I", len(faces)) + rows


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.obj", OBJ.format("f 1/1/1 2/1/1 3/1/1 4/1/1")),
        ("a.obj", OBJ.format("o one\nf 1//1 2//1 3//1\ng two\nf -4 -2 -1")),
        ("a.OBJ", OBJ.format("f 1/1 2/1 3/1\nf 1 3 4").replace("\n", "\r\n")),
        ("a.off", f"OFF\n4 1 0\n{OFF}"),
        ("a.off", f"OFF4 1 0\n{OFF}"),  # as many files of ModelNet
        ("a.off", f"OFF\n# by hand\n4 1 0\n{OFF.replace('0 1 2 3', '0 1 2 3 255 0 0')}"),
        ("a.stl", STL),
        ("a.stl", binary_stl([(0, 1, 2), (0, 2, 3)])),
    ],
)
def test_meshes(tmp_path, name, data):
    assert on_rectangle(read(tmp_path, name, data))


def test_bodies_of_a_scene_stand_where_it_puts_them(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box(), transform=trimesh.transformations.translation_matrix((10, 0, 0)))
    turned = trimesh.transformations.rotation_matrix(np.pi / 2, (0, 1, 0)) @ np.diag([4, 1, 1, 1])
    scene.add_geometry(box(), transform=turned)  # stretched along x, which then lies along z
    points = read(tmp_path, "a.glb", scene.export(file_type="glb"), 2000)
    far = points[:, 0] > 5
    assert np.allclose(points[far].min(axis=0), (9.5, -0.5, -0.5), atol=0.02)
    assert np.allclose(points[~far].min(axis=0), (-0.5, -0.5, -2), atol=0.02)
    assert np.allclose(points[~far].max(axis=0), (0.5, 0.5, 2), atol=0.02)
    assert np.isclose(far.mean(), 6 / (6 + 18), atol=0.04)  # by area


def test_points_are_drawn_by_area(tmp_path):
    data = "v 0 0 0\nv 3 0 0\nv 0 2 0\nv 10 0 0\nv 11 0 0\nv 10 2 0\nf 1 2 3\nf 4 5 6\n"  # areas 3 and 1
    points = read(tmp_path, "a.obj", data, 4000)
    assert np.isclose((points[:, 0] < 5).mean(), 0.75, atol=0.02)
    assert np.allclose(points[points[:, 0] < 5].mean(axis=0), (1, 2 / 3, 0), atol=0.04)


def test_a_mesh_of_points_alone_is_a_cloud(tmp_path):
    assert same_points(read(tmp_path, "a.obj", "v 1 2 3\nv 4 5 6\nv 7 8 10\n"), CLOUD)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.obj", "", "holds no points and no surface"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "not a readable .obj file"),
        ("a.obj", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "1 of 1 triangles have a corner that is not finite"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "its 1 triangles have the area 0; there is nothing to draw"),
        ("a.off", "OFF\n4 1 0\n0 0 0\n", "not a readable .off file"),
        ("a.stl", binary_stl([(0, 1, 2)])[:-9], "not a readable .stl file"),
        ("a.glb", b"glTF" + b"\0" * 40, "not a readable .glb file"),
    ],
)
def test_meshes_that_are_refused(tmp_path, name, data, reason):
    assert reason in refused(tmp_path, name, data)


def test_no_other_file_is_opened(tmp_path, monkeypatch):
    """Neither the materials of an .obj nor the buffer of a .glb."""
    outside = tmp_path / "outside.bin"
    outside.write_bytes(CORNERS[:3].astype("<f4").tobytes())
    (tmp_path / "elsewhere.mtl").write_text("newmtl wood\nmap_Kd secret.png\n")
    folder = tmp_path / "in"
    folder.mkdir()
    opened, real = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda *args, **more: opened.append(str(args[0])) or real(*args, **more))
    assert on_rectangle(read(folder, "a.obj", OBJ.replace("../../", "../").format("f 1/1 2/1 3/1 4/1")))
    document = (
        b'{"asset":{"version":"2.0"},"scene":0,"scenes":[{"nodes":[0]}],"nodes":[{"mesh":0}],'
        b'"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}],'
        b'"accessors":[{"bufferView":0,"componentType":5126,"count":3,"type":"VEC3"}],'
        b'"bufferViews":[{"buffer":0,"byteLength":36}],"buffers":[{"byteLength":36,"uri":"../outside.bin"}]}'
    )
    document += b" " * (-len(document) % 4)
    chunk = struct.pack("<I4s", len(document), b"JSON") + document
    assert "not a readable .glb file" in refused(
        folder, "a.glb", struct.pack("<4sII", b"glTF", 2, 12 + len(chunk)) + chunk
    )
    assert [name for name in opened if "outside" in name or "elsewhere" in name] == []


# ---- surveys ----


def las(points, **header):
    made = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    made.header.scales, made.header.offsets = [0.001] * 3, header.get("offsets", [0, 0, 0])
    made.x, made.y, made.z = np.asarray(points).T
    file = io.BytesIO()
    made.write(file, do_compress=header.get("compress", False))
    return file.getvalue()


@pytest.mark.parametrize("compress", [False, True])
def test_surveys_keep_their_digits(tmp_path, compress):
    """In float32, a northing in metres has steps of half a metre."""
    place = np.array([500000, 5400000, 300])
    data = las(CLOUD / 1000 + place, offsets=place, compress=compress)
    path = tmp_path / ("a.laz" if compress else "a.las")
    path.write_bytes(data)
    points, count = read_points(path, 64, np.random.default_rng(0))
    assert count == 3
    order = np.argsort(points[:, 0])
    assert np.allclose(points[order], (CLOUD - CLOUD.mean(axis=0)) / 1000, atol=1e-6)
    assert "not a readable" in refused(tmp_path, path.name, data[:200])


# ---- all ----


def test_what_is_drawn_follows_from_the_seed(tmp_path):
    mesh, cloud = OBJ.format("f 1/1 2/1 3/1 4/1"), npy(np.arange(300).reshape(100, 3).astype(float))
    for name, data in (("a.obj", mesh), ("a.npy", cloud)):
        first, again, other = (read(tmp_path, name, data, 20, seed) for seed in (0, 0, 1))
        assert first.shape == (20, 3)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) == 20


def test_a_missing_library_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    monkeypatch.setitem(sys.modules, "laspy", None)
    for name, library in (("a.stl", "trimesh"), ("a.laz", "laspy")):
        (tmp_path / name).write_bytes(b"any")
        with pytest.raises(MissingLibrary, match=f"^{library} is not installed, which reads.*run `{INSTALL}`$"):
            read_points(tmp_path / name, 8, np.random.default_rng(0))


@pytest.mark.parametrize("ending", FORMATS)
def test_junk_is_refused_in_one_line(tmp_path, ending):
    rng = np.random.default_rng(0)
    for size in (0, 1, 30, 3000):
        refused(tmp_path, f"a{ending}", rng.bytes(size))

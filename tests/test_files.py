from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

import lit_align
from lit_align.files import code_digest, digest, own_folder, to_disk, user_cache


def test_a_folder_is_made_for_the_user_alone(tmp_path: Path) -> None:
    own_folder(tmp_path / "a" / "b", "data.cache")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.security(14)
def test_one_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(
        PermissionError, match=r"data\.cache .*: others may write to it; expected a folder that only you"
    ):
        own_folder(tmp_path, "data.cache")


@pytest.mark.security(14)
def test_so_is_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder(tmp_path, "data.cache")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="it belongs to another user"):
        own_folder(tmp_path, "data.cache")


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path))
    assert user_cache() == tmp_path
    monkeypatch.delenv("LIT_ALIGN_CACHE")
    assert user_cache() == Path.home() / ".cache" / "lit_align"


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    to_disk(file)
    assert digest(file) == hashlib.sha256(b"abc").hexdigest()


class TestCode:
    """The digest that cache keys contain covers the sources of a package at any depth."""

    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        return (
            Path(
                shutil.copytree(
                    Path(lit_align.__file__).parent,
                    tmp_path / "lit_align",
                    ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
                )
            )
            / "data"
        )

    def test_a_copy_has_the_same_digest(self, package: Path) -> None:
        assert code_digest(package) == code_digest(Path(lit_align.__file__).parent / "data")

    @pytest.mark.parametrize("name", ["datamodule.py", "text/render.py", "prepared/deep/er/new.py", "../types.py"])
    def test_a_changed_file_changes_the_digest(self, package: Path, name: str) -> None:
        before = code_digest(package)
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        with (package / name).open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        assert code_digest(package) != before

    def test_a_renamed_nested_file_changes_the_digest(self, package: Path) -> None:
        before = code_digest(package)
        (package / "text" / "render.py").rename(package / "text" / "other.py")
        assert code_digest(package) != before

    def test_a_file_that_is_no_source_does_not(self, package: Path) -> None:
        before = code_digest(package)
        (package / "text" / "notes.txt").write_text("", "utf-8")
        assert code_digest(package) == before

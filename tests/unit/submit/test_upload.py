"""What travels with a submission, and what never does."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.submit import upload as uploading
from swamp_ray.submit.upload import CONFIG_NAME, check_size, select_files, stage, stage_package


def write(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_data_results_environments_and_caches_stay_behind(tmp_path: Path) -> None:
    write(tmp_path, "train.py", "pkg/model.py", "my_data/train.parquet", "out/artifacts/aa/x", "env/bin/python",
          "env/pyvenv.cfg", "conda/conda-meta/history", "__pycache__/train.pyc", "pkg/model.pyc", ".git/config",
          "old_results/artifacts/aa/x", "old_results/runs/r/run.json", "node_modules/a/b.js", "secret/auth_token",
          ".env", "pkg/.env.local", ".netrc")
    excluded = {tmp_path / "my_data": "data", tmp_path / "out": "the storage root",
                tmp_path / "secret/auth_token": "the token"}
    found = select_files(tmp_path, excluded)
    assert set(found.sizes) == {"train.py", "pkg/model.py"}
    assert found.left_out["my_data"] == "data"
    assert found.reason("my_data/train.parquet") == "data"
    assert found.left_out["old_results"] == "results"
    assert found.left_out["env"] == found.left_out["conda"] == "a virtual environment"
    assert found.reason("train.py") is None


def test_a_folder_named_like_results_of_swamp_is_not_mistaken(tmp_path: Path) -> None:
    write(tmp_path, "runs/launch.py", "artifacts.py")
    assert set(select_files(tmp_path, {}).sizes) == {"runs/launch.py", "artifacts.py"}


def test_data_behind_a_link_stay_behind_wherever_they_are_excluded(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/data/x", "code/a.py", "code/real.py")
    (tmp_path / "code" / "data").symlink_to(tmp_path / "elsewhere" / "data")
    (tmp_path / "code" / "link.py").symlink_to(tmp_path / "code" / "real.py")
    (tmp_path / "code" / "broken").symlink_to(tmp_path / "code" / "nothing")
    (tmp_path / "code" / "here").symlink_to(tmp_path / "code")
    (tmp_path / "code" / "circle").symlink_to("circle")
    found = select_files(tmp_path / "code", {})
    assert set(found.sizes) == {"a.py", "real.py", "link.py"}
    assert found.left_out["data"] == "a link that leads out of the folder"
    assert found.left_out["here"] == "a link to a folder"
    assert found.left_out["broken"] == found.left_out["circle"] == "not a file"
    linked = select_files(tmp_path, {tmp_path / "elsewhere" / "data": "data"})
    assert linked.left_out["code/data"] == linked.left_out["elsewhere/data"] == "data"


def test_swamp_ray_travels_on_its_own(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "swamp_ray/submit/upload.py", "other/swamp_ray/x.py")
    assert set(select_files(tmp_path, {}).sizes) == {"a.py", "other/swamp_ray/x.py"}
    package = stage_package(tmp_path / "scratch")
    assert (package / "cli.py").is_file()
    assert not list(package.rglob("*.pyc"))


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    write(tmp_path, "small.py")
    for index in range(7):
        write(tmp_path, f"weights/w{index}.bin", text="x" * 1000 * (index + 1))
    with pytest.raises(UserError) as error:
        check_size(select_files(tmp_path, {}), limit=10_000)
    text = str(error.value)
    assert "8 files (28.0 kB)" in text
    assert [f"w{index}.bin" in text for index in range(7)] == [False, False, True, True, True, True, True]
    assert ".gitignore" in text
    check_size(select_files(tmp_path, {}), limit=28_001)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "MAX_FILES", 3)
    write(tmp_path, *(f"{index}.txt" for index in range(4)))
    with pytest.raises(UserError, match="at most 3 files"):
        select_files(tmp_path, {})


def test_the_config_is_staged_whatever_the_ignore_files_say(tmp_path: Path) -> None:
    write(tmp_path / "code", "a.py", CONFIG_NAME)
    write(tmp_path / "code", ".gitignore", text="*.yaml\n")
    (tmp_path / "code" / "a.py").chmod(0o755)
    stage(select_files(tmp_path / "code", {}), "the config", tmp_path / "staged")
    assert (tmp_path / "staged" / CONFIG_NAME).read_text() == "the config"
    assert sorted(path.name for path in (tmp_path / "staged").iterdir()) == ["a.py", CONFIG_NAME]
    assert (tmp_path / "staged" / "a.py").stat().st_mode & 0o100


def test_the_digest_is_that_of_names_and_bytes(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "b.py")
    before = select_files(tmp_path, {}).digest()
    (tmp_path / "ignored.pyc").write_text("")
    assert select_files(tmp_path, {}).digest() == before
    write(tmp_path, "b.py", text="y")
    changed = select_files(tmp_path, {}).digest()
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    assert len({before, changed, select_files(tmp_path, {}).digest()}) == 3


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        select_files(tmp_path / "nothing", {})

"""A storage root that is not the same folder on every node is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.on_ray.nodes import check_shared, look
from swamp_ray.storage.places import open_place


def test_nodes_that_do_not_see_the_folder_are_named(tmp_path: Path) -> None:
    def ask(file: Path, content: str) -> dict[str, str | None]:
        elsewhere = tmp_path / "another disk" / file.name
        return {"near": look(str(file), content), "far at 10.0.0.7": look(str(elsewhere), content, pause_s=0)}

    words = r"storage: .*not the same folder on far at 10\.0\.0\.7 \(it does not see"
    with pytest.raises(UserError, match=words) as found:
        check_shared(open_place(tmp_path / "storage"), ask)
    assert "near" not in str(found.value)
    assert list((tmp_path / "storage").iterdir()) == [], "the probe is removed"


def test_a_folder_with_other_bytes_is_another_folder(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("theirs")
    assert look(str(tmp_path / "probe"), "ours") == "it sees other bytes there"


def test_a_shared_folder_is_accepted(tmp_path: Path) -> None:
    check_shared(open_place(tmp_path), lambda file, content: {"a": look(str(file), content), "b": None})
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_needs_no_check(remote: str) -> None:
    def ask(file: Path, content: str) -> dict[str, str | None]:
        raise AssertionError("nobody is asked")

    check_shared(open_place(remote), ask)

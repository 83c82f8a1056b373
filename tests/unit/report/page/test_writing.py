"""``swamp report``: where it writes, and what it refuses before any work."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.launch import run
from swamp_ray.report import write_report
from swamp_ray.storage.json_lines import dump_json, read_lines, sealed
from swamp_ray.storage.places import as_spot
from tests.helpers import tiny
from tests.hostile import hostile_json

pytestmark = pytest.mark.usefixtures("own_figures")


def swamp(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """The study in a place where anything may be changed."""
    return Path(shutil.copytree(study, tmp_path / "copy"))


def test_one_run_has_its_report_in_its_folder(copy: Path) -> None:
    done = swamp("report", "swamp-seed0", "--storage", copy, "--no-measure")
    assert done.exit_code == 0, done.output
    folder = copy / "runs" / "swamp-seed0"
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="(report/[^"]+)"', page)
    assert {link.rpartition(".")[2] for link in links} == {"csv", "svg", "png"}
    assert all((folder / link).stat().st_size > 0 for link in links)
    assert {f"report/{path.name}" for path in (folder / "report").iterdir()} == set(links)
    assert f"{folder}/report.html" in done.output.replace("\n", "")


def test_several_runs_have_it_where_one_works(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = swamp("report", "imp-seed1", "imp-*", "swamp*", "--storage", copy, "--no-measure")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert "swamp report imp-seed1 imp-seed0 imp-seed2 swamp-seed0 swamp-seed1" in page
    assert (tmp_path / "report" / "differences.csv").is_file()
    assert "report: report.html" in done.output


def test_it_is_written_where_one_wants_it(study: Path, tmp_path: Path) -> None:
    output = tmp_path / "my pages" / "the one.html"
    written = write_report(["imp-seed0"], str(study), output, measure=False)
    assert written.page == output
    assert (tmp_path / "my pages" / "the one" / "accuracy_against_sparsity.png").is_file()
    assert all(Path(file).parent == tmp_path / "my pages" / "the one" for file in written.files)
    assert list(output.parent.rglob(".*")) == []
    text = output.read_text()
    assert "swamp report imp-seed0 --storage" in text
    assert "href=\"the one/accuracy_against_sparsity.svg\"" in text


def test_a_page_alone_has_nothing_beside_it_and_no_dead_links(study: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    done = swamp("report", "imp-seed0", "--storage", study, "--output", output, "--no-measure", "--page-only")
    assert done.exit_code == 0, done.output
    assert "figures as SVG" not in done.output
    assert list(tmp_path.iterdir()) == [output]
    page = output.read_text()
    assert re.findall(r'href="(?!#|data:|https?:)([^"]+)"', page) == []
    assert "data:text/csv" in page
    assert " --no-measure --page-only</code>" in page


def test_it_goes_into_an_object_store_too(remote: str) -> None:
    run(tiny(remote, name="far", pruning__target=0.5, particles__count=1))
    written = write_report(["far"], remote)
    assert written.page == f"{remote}/runs/far/report.html"
    assert (as_spot(str(written.page)).read() or b"").startswith(b"<!DOCTYPE html>")
    assert f"{remote}/runs/far/report/accuracy_against_sparsity.svg" in written.files


@pytest.mark.parametrize(("arguments", "words"), [
    (("imp-seed7",), "Did you mean 'imp-seed"),
    (("nothing-*",), "no run with a finished round fits this pattern"),
    (("imp-seed0", "imp-seed0"), "a run must be named once"),
    (("imp-seed0", "--output", "page.pdf"), "Let its name end in .html"),
    (("imp-seed0", "--output", "/proc/page.html"), "cannot be written"),
    (("imp-seed0", "--output", "file.txt/page.html"), "cannot be written"),
])
def test_wrong_use_is_told(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
                           words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    done = swamp("report", *arguments, "--storage", study, "--no-measure")
    assert done.exit_code == 2, done.output
    assert words in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt"]


def test_a_sweep_is_reported_alone(copy: Path) -> None:
    (copy / "sweeps" / "grid").mkdir(parents=True)
    (copy / "sweeps" / "grid" / "sweep.yaml").write_text("{}")
    with pytest.raises(UserError, match="the report of a sweep is about that sweep alone"):
        write_report(["grid", "imp-seed0"], str(copy))


def test_runs_that_are_judged_by_other_metrics_are_not_mixed(copy: Path) -> None:
    path = copy / "runs" / "imp-seed0" / "run.json"
    changed = json.loads(path.read_text().replace('"primary": "accuracy"', '"primary": "loss"'))
    del changed["check"]
    path.write_text(json.dumps(sealed(changed)))
    with pytest.raises(UserError, match="judged by"):
        write_report(["imp-seed0", "imp-seed1"], str(copy), copy / "page.html")


def test_a_run_without_a_finished_round_is_told(copy: Path) -> None:
    (copy / "runs" / "imp-seed0" / "rounds.jsonl").unlink()
    with pytest.raises(UserError, match="no finished round"):
        write_report(["imp-seed0"], str(copy))


def test_a_pattern_leaves_out_what_has_hardly_begun(copy: Path) -> None:
    (copy / "runs" / "imp-seed0" / "rounds.jsonl").unlink()
    said: list[str] = []
    page = Path(write_report(["imp-*"], str(copy), copy / "page.html", measure=False, say=said.append).page)
    assert "imp-seed0: left out, it has no finished round yet" in said
    assert "swamp report imp-seed1 imp-seed2 " in page.read_text()


def test_a_pattern_leaves_out_swapped_masks(copy: Path) -> None:
    shutil.copytree(copy / "runs" / "imp-seed0", copy / "runs" / "imp-seed0-swap")
    (copy / "runs" / "imp-seed0-swap" / "start.safetensors").write_bytes(b"a ticket")
    said: list[str] = []
    page = Path(write_report(["imp-*"], str(copy), copy / "page.html", measure=False, say=said.append).page)
    assert "1 run of swapped masks is left out" in said
    assert "swamp report imp-seed0 imp-seed1 imp-seed2 " in page.read_text()


def test_damaged_records_are_named(copy: Path) -> None:
    spot = as_spot(copy / "runs" / "imp-seed0" / "rounds.jsonl")
    lines = [{key: line[key] for key in line if key not in ("check", "average")} for line in read_lines(spot)]
    spot.write(b"".join(dump_json(sealed(line)) + b"\n" for line in lines))
    with pytest.raises(CorruptArtifactError, match="not what was written"):
        write_report(["imp-seed0"], str(copy))


@pytest.mark.parametrize("seed", range(6))
def test_hostile_records_are_told_or_shown_never_a_traceback(copy: Path, seed: int) -> None:
    dice = random.Random(seed)
    folder = copy / "runs" / "imp-seed0"
    for name in ("run.json", dice.choice(["metrics.jsonl", "rounds.jsonl", "results.jsonl", "config.yaml"])):
        (folder / name).write_bytes(hostile_json((folder / name).read_bytes(), dice))
    done = swamp("report", "imp-seed0", "--storage", copy, "--no-measure")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2), done.output

"""The members of a setting, side by side in this process: what they write, where they are held, how they end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import Interrupted, RunError, UserError
from swamp_ray.launch import run
from swamp_ray.method.events import RoundPlan
from swamp_ray.method.rounds import plan_rounds
from swamp_ray.run.prepare import prepare
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.sweep.members import Milestone, Team, milestone_rounds
from tests.faults import epoch_seed
from tests.helpers import ticket_digests, tiny

SMALL = {"particles__count": 2, "model__name": "mlp", "model__options": {"hidden": [16]}, "round__length": 1,
         "averaging__within": "none", "training__schedule__warmup": 0, "execution__checkpoint_every": 0}
FAULTY = {**SMALL, "pruning__target": 0.5, "task__name": "tests.faults:Faulty"}


def members(storage: Path, seeds: Sequence[int] = (0, 1), **values: Any) -> list[SwampConfig]:
    """Runs that differ in their seed alone."""
    return [tiny(storage, name=f"seed{seed}", seed=seed, **{**SMALL, **values}) for seed in seeds]


def team(storage: Path, *, seeds: Sequence[int] = (0, 1), at_sparsity: Sequence[float] = (), pause: bool = False,
         stopping: Stopping | None = None, **values: Any) -> Team:
    return Team(members(storage, seeds, **values), "cpu", at_sparsity=at_sparsity, pause=pause, stopping=stopping)


def to_the_end(storage: Path, **values: Any) -> list[Milestone]:
    return list(team(storage, **values).milestones())


def record_of(storage: Path, name: str) -> dict[str, Any]:
    return json.loads((storage / f"runs/{name}/run.json").read_text())


def statuses(storage: Path) -> list[str]:
    return [record_of(storage, f"seed{seed}")["status"] for seed in (0, 1)]


def num_trained(storage: Path) -> int:
    """Dense phases and particles whose results were ever stored, whoever trained them."""
    found = [json.loads(path.read_bytes())["info"] for path in storage.glob("artifacts/*/*/result.json")]
    return sum("history" in info for info in found)


def trained(storage: Path) -> list[int]:
    """Dense phases and particles that all attempts at both members say they have trained."""
    return [sum(attempt["trained"] for attempt in record_of(storage, f"seed{seed}")["attempts"]) for seed in (0, 1)]


# Results


def test_members_write_what_swamp_run_writes_of_each_alone(tmp_path: Path) -> None:
    to_the_end(tmp_path / "together")
    for config in members(tmp_path / "alone"):
        run(config)
    for seed in (0, 1):
        name = f"seed{seed}"
        assert ticket_digests(tmp_path / "together", name) == ticket_digests(tmp_path / "alone", name)
        alone, together = (RunDir(tmp_path / where, name).read_rounds() for where in ("alone", "together"))
        assert [one["average"] for one in together] == [one["average"] for one in alone]
    assert len({tuple(ticket_digests(tmp_path / "together", name).values()) for name in ("seed0", "seed1")}) == 2


def test_a_single_member_is_a_run(tmp_path: Path) -> None:
    found = to_the_end(tmp_path / "team", seeds=(0,))
    run(members(tmp_path / "run")[0])
    assert ticket_digests(tmp_path / "team", "seed0") == ticket_digests(tmp_path / "run", "seed0")
    assert [len(milestone.records) for milestone in found] == [1, 1, 1]
    assert record_of(tmp_path / "team", "seed0")["status"] == "complete"


def test_what_a_member_says_of_itself_is_in_a_log_of_its_own(tmp_path: Path) -> None:
    to_the_end(tmp_path)
    for seed in (0, 1):
        text = Path(RunDir(tmp_path, f"seed{seed}").log(1, "driver").location).read_text()
        assert [f"round {index} recorded" in text for index in range(4)] == [True, True, True, False]


# Milestones


def test_every_round_is_a_milestone_once_all_members_have_recorded_it(tmp_path: Path) -> None:
    found = []
    for milestone in team(tmp_path).milestones():
        found.append((milestone.number, milestone.round, round(milestone.sparsity, 3)))
        for seed, record in zip((0, 1), milestone.records, strict=True):
            stored = RunDir(tmp_path, f"seed{seed}").read_rounds()[milestone.round]
            assert record.average == stored["average"]
            assert record.ticket == stored["ticket"]
            assert f"runs/seed{seed}/" in record.ticket, "records are in the order of the members"
    assert found == [(1, 0, 0.0), (2, 1, 0.5), (3, 2, 0.75)]


def test_milestones_at_sparsities_are_the_first_rounds_that_reach_them(tmp_path: Path) -> None:
    some = team(tmp_path, seeds=(0,), at_sparsity=[0.3, 0.75])
    assert some.num_milestones == 2
    assert [(one.number, one.round) for one in some.milestones()] == [(1, 1), (2, 2)]
    assert len(RunDir(tmp_path, "seed0").read_rounds()) == 3, "the rounds between milestones are recorded as well"


def plan_of(num_prunable: int, survivors: Sequence[int]) -> list[RoundPlan]:
    return plan_rounds(num_prunable, survivors, [1] * len(survivors))


def test_a_sparsity_is_reached_to_within_half_a_weight() -> None:
    # A third of 1000 weights cannot be kept: 333 are, 0.33 of a weight short of the sparsity 2/3.
    plan = plan_of(1000, [1000, 667, 334, 333])
    assert milestone_rounds(plan, [2 / 3]) == [3]
    assert milestone_rounds(plan_of(1000, [1000, 334, 333]), [0.6665]) == [1], "exactly half a weight away"
    assert milestone_rounds(plan_of(1000, [1000, 334, 333]), [0.66651]) == [2], "a little more than half a weight"


def test_the_tolerance_is_of_all_weights_where_a_ticket_is_pruned_further() -> None:
    plan = plan_of(1000, [500, 250])  # round 0 is sparse already
    assert milestone_rounds(plan, [0.0, 0.5, 0.5005, 0.5006, 0.7]) == [0, 0, 0, 1, 1]


def test_a_sparsity_beyond_the_target_has_no_milestone() -> None:
    plan = plan_of(100, [100, 50, 25])
    assert milestone_rounds(plan, [0.5, 0.9]) == [1]
    assert milestone_rounds(plan, [0.99]) == []
    assert milestone_rounds(plan, []) == [0, 1, 2]


def test_two_milestones_in_one_round_are_both_reached(tmp_path: Path) -> None:
    """Between 0 and 0.5 there is no round: settings with smaller steps have one there, and all count alike."""
    found = to_the_end(tmp_path, at_sparsity=[0.2, 0.4], pause=True, pruning__target=0.5)
    assert [(one.number, one.round) for one in found] == [(1, 1), (2, 1)]
    assert statuses(tmp_path) == ["complete", "complete"]


# Holding


def test_nothing_is_trained_beyond_a_milestone_that_is_held(tmp_path: Path) -> None:
    counts = []
    for _ in team(tmp_path, pause=True).milestones():
        counts.append(num_trained(tmp_path))
    dense, particles = 2, 2 * 2
    assert counts == [dense + particles, dense + 2 * particles, dense + 3 * particles]


def test_between_held_milestones_nobody_waits(tmp_path: Path) -> None:
    counts = []
    for _ in team(tmp_path, pause=True, at_sparsity=[0.5]).milestones():
        counts.append(num_trained(tmp_path))
    assert counts == [2 + 2 * 4]
    assert num_trained(tmp_path) == 2 + 3 * 4


def test_holding_changes_no_result(tmp_path: Path) -> None:
    to_the_end(tmp_path / "held", pause=True)
    to_the_end(tmp_path / "free")
    for name in ("seed0", "seed1"):
        assert ticket_digests(tmp_path / "held", name) == ticket_digests(tmp_path / "free", name)


# Stopping and going on


def test_a_team_that_is_stopped_at_a_milestone_leaves_everything_in_order(tmp_path: Path) -> None:
    milestones = team(tmp_path, pause=True).milestones()
    next(milestones)
    assert next(milestones).round == 1
    milestones.close()
    before = num_trained(tmp_path)
    for seed in (0, 1):
        record = record_of(tmp_path, f"seed{seed}")
        assert (record["status"], record["attempts"][0]["status"]) == ("stopped", "stopped")
        assert RunDir(tmp_path, f"seed{seed}").held() is None, "the run's lease is given back"
        assert len(RunDir(tmp_path, f"seed{seed}").read_rounds()) == 2
    assert not list(tmp_path.glob("artifacts/*/*/lease*")), "nobody else has to wait for a particle"

    assert [one.round for one in to_the_end(tmp_path)] == [0, 1, 2], "what is recorded is told again"
    assert statuses(tmp_path) == ["complete", "complete"]
    assert trained(tmp_path) == [1 + 3 * 2] * 2, "nothing is trained twice"
    assert num_trained(tmp_path) == before + 2 * 2


def test_a_team_that_is_stopped_in_the_middle_of_a_round_goes_on(tmp_path: Path) -> None:
    milestones = team(tmp_path).milestones()
    next(milestones)
    milestones.close()
    assert statuses(tmp_path) == ["stopped", "stopped"]
    to_the_end(tmp_path)
    assert trained(tmp_path) == [1 + 3 * 2] * 2
    to_the_end(tmp_path / "undisturbed")
    assert ticket_digests(tmp_path, "seed1") == ticket_digests(tmp_path / "undisturbed", "seed1")


def test_a_team_that_was_never_asked_for_a_milestone_leaves_no_trace(tmp_path: Path) -> None:
    team(tmp_path).milestones().close()
    assert not list(tmp_path.iterdir())


def test_a_complete_team_again_trains_nothing(tmp_path: Path) -> None:
    first = to_the_end(tmp_path)
    again = to_the_end(tmp_path)
    assert [one.records for one in again] == [one.records for one in first]
    assert trained(tmp_path) == [7, 7]
    assert record_of(tmp_path, "seed0")["attempts"][1]["workers"] == 0, "no worker is started for it"


class Asked(Stopping):
    """Asks to stop once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def asked(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_an_interrupted_team_goes_on_at_its_checkpoints(tmp_path: Path) -> None:
    values = {"round__length": 6, "pruning__target": 0.0, "execution__checkpoint_every": 1}
    to_the_end(tmp_path / "undisturbed", **values)
    with pytest.raises(Interrupted, match="the same command goes on"):
        to_the_end(tmp_path, stopping=Asked(looks=40), **values)
    assert statuses(tmp_path) == ["interrupted", "interrupted"]
    assert list(tmp_path.glob("artifacts/*/*/checkpoint.json"))
    assert all(RunDir(tmp_path, name).held() is None for name in ("seed0", "seed1"))
    to_the_end(tmp_path, **values)
    total = 2 * (1 + 2 * 6)
    attempts = [attempt for seed in (0, 1) for attempt in record_of(tmp_path, f"seed{seed}")["attempts"]]
    epochs = [attempt["trained_epochs"] for attempt in attempts]
    # The epochs in checkpoints were trained before the interruption, and are counted in neither attempt.
    assert sum(epochs) < total
    for name in ("seed0", "seed1"):
        assert ticket_digests(tmp_path, name) == ticket_digests(tmp_path / "undisturbed", name)
    assert statuses(tmp_path) == ["complete", "complete"]


def test_a_team_that_is_asked_at_once_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        to_the_end(tmp_path, stopping=Asked(looks=0))
    assert statuses(tmp_path) == ["interrupted", "interrupted"]
    assert num_trained(tmp_path) == 0


# Failing


def diverging(round_index: int, particle: int) -> dict[str, Any]:
    """The member with seed 1 diverges in this particle, the other one never does."""
    return {**FAULTY, "task__options": {"nan": [epoch_seed(round_index, particle, run_seed=1)]}}


def failure(failing: Team) -> tuple[str, list[int]]:
    """What a team failed of, empty if it did not, and the rounds of the milestones before."""
    found: list[int] = []
    try:
        for milestone in failing.milestones():
            found.append(milestone.round)
    except RunError as error:
        return str(error), found
    return "", found


def test_a_member_that_diverges_ends_the_team_with_advice_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    text, found = failure(team(tmp_path, pause=True, **diverging(1, 1)))
    assert text.startswith("round 1, particle 1 diverged: the loss was nan at step 0 (epoch 0, learning rate ")
    assert "set particles.on_failure to retry (another seed) or drop (go on without it)" in text
    assert f"delete {tmp_path}/artifacts/" in text
    assert found == [0]
    assert statuses(tmp_path) == ["failed", "failed"]
    for name in ("seed0", "seed1"):
        assert "round 1, particle 1 diverged" in record_of(tmp_path, name)["attempts"][0]["reason"]
        assert RunDir(tmp_path, name).held() is None
    before = trained(tmp_path)[0]
    alone = run(members(tmp_path, **diverging(1, 1))[0])
    assert len(alone.records) == 2
    assert before >= 3, "the dense phase and the first round were trained"
    assert trained(tmp_path)[0] <= 1 + 2 * 2, "the other member goes on with what it has"


@pytest.mark.parametrize(("round_index", "particle", "milestones", "pause"), [
    (0, 0, [], False), (0, 1, [], True), (1, 0, [0], True)])
def test_a_divergence_that_is_known_already_ends_the_team_again(
    tmp_path: Path, round_index: int, particle: int, milestones: list[int], pause: bool,
) -> None:
    """A second attempt finds everything up to there in the storage, and must not take the setting for complete."""
    values = diverging(round_index, particle)
    for _ in range(2):
        text, found = failure(team(tmp_path, pause=pause, **values))
        assert text.startswith(f"round {round_index}, particle {particle} diverged")
        assert found == milestones
        assert statuses(tmp_path) == ["failed", "failed"]


def test_a_policy_for_divergence_holds_in_a_team(tmp_path: Path) -> None:
    values = diverging(0, 1) | {"particles__on_failure": "drop"}
    first, second = to_the_end(tmp_path, **values)
    assert [len(record.dropped) for record in first.records] == [0, 1]
    assert [len(record.dropped) for record in second.records] == [0, 0]
    assert "goes on without particle 1" in Path(RunDir(tmp_path, "seed1").log(1, "driver").location).read_text()


def test_a_name_that_stands_for_another_recipe_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run(members(tmp_path, training__lr=0.1, pruning__target=0.0)[1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"'seed1' exists already with another recipe:\n  training\.lr: 0\.1 -> 0\.05"):
        next(team(tmp_path).milestones())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_member_that_another_process_works_on_is_refused_and_the_others_are_given_back(tmp_path: Path) -> None:
    holder = RunDir(tmp_path, "seed1").hold()
    try:
        with pytest.raises(UserError, match="the run 'seed1' is being worked on by process"):
            next(team(tmp_path).milestones())
        assert RunDir(tmp_path, "seed0").held() is None
        assert num_trained(tmp_path) == 0
    finally:
        holder.release()
    to_the_end(tmp_path)


def test_a_setting_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="warm-up must be shorter than the training"):
        team(tmp_path, training__schedule__warmup="1 epoch")
    assert not list(tmp_path.iterdir())


# Data and states


def test_data_that_are_there_are_not_read_again(tmp_path: Path) -> None:
    configs = members(tmp_path, seeds=(0,))
    data = prepare(configs[0]).data
    missing = members(tmp_path, seeds=(0,), data__name="tests.nowhere:data", data__options={})
    done = list(Team(configs, "cpu", data=data).milestones())
    assert len(done) == 3
    with pytest.raises(UserError):
        Team(missing, "cpu")


@pytest.mark.parametrize(("policy", "kept"), [("all", [2, 2, 2]), ("last", [0, 0, 2]), ("none", [0, 0, 0])])
def test_states_of_particles_are_kept_as_the_policy_says(tmp_path: Path, policy: str, kept: list[int]) -> None:
    to_the_end(tmp_path, pause=True, keep__particles=policy)
    store = ArtifactStore(tmp_path)
    for seed in (0, 1):
        rounds = RunDir(tmp_path, f"seed{seed}").read_rounds()
        names = [[entry["name"] for entry in one["artifacts"]["particles"]] for one in rounds]
        assert [sum(not store.lacks(name, "state.safetensors") for name in one) for one in names] == kept
    assert trained(tmp_path) == [7, 7]
    to_the_end(tmp_path, keep__particles=policy)
    assert trained(tmp_path) == [7, 7], "what was let go is not needed again"


def test_a_team_that_lets_go_of_states_can_be_stopped_and_goes_on(tmp_path: Path) -> None:
    milestones = team(tmp_path, pause=True, keep__particles="none").milestones()
    next(milestones)
    milestones.close()
    to_the_end(tmp_path, pause=True, keep__particles="none")
    assert trained(tmp_path) == [7, 7]
    assert not math.isnan(RunDir(tmp_path, "seed1").read_rounds()[-1]["spread"])

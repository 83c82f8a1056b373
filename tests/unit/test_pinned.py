"""Small runs whose numbers are pinned: a change that alters them has to raise the format of what it alters.

Weights and metrics are compared up to what processors and versions of torch differ in, far below what another seed,
order of batches, schedule, rule for masks, augmentation or mean makes of them. When a change is meant to alter numbers,
raise the kind's number in `swamp_ray.storage.names.FORMATS`, see to `swamp_ray.storage.former_names`, and write the
file anew: ``python -m tests.unit.test_pinned``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.launch import run
from swamp_ray.storage.names import FORMATS
from swamp_ray.storage.tickets import load_ticket
from tests.helpers import tiny

FILE = Path(__file__).with_name("pinned.json")
TOLERANCE = 1e-3
"""Relative, of projections of weights and of losses."""
FLIPS = 2
"""Weights of a mask that rounding may decide."""
COMMON: dict[str, Any] = {
    "pruning__target": 0.5, "particles__count": 2, "training__batch_size": 16, "round__length": 2,
    "execution__threads": 1, "data__options": {"num_train": 64, "num_test": 30, "num_classes": 3, "shape": [1, 6, 6]},
}
CROPS: dict[str, Any] = {"data__augment": "crop_flip", "data__crop_padding": 1}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model__name": "tests.pinned_networks:mlp", "averaging__within": "none"},
    "conv_swa_crops": {"model__name": "tests.pinned_networks:conv", **CROPS},
    "conv_plain_statistics": {"model__name": "tests.pinned_networks:conv", "averaging__statistics": "unaugmented",
                              "averaging__within": "ema", "averaging__ema_decay": 0.8, **CROPS},
    "attention_adamw": {"model__name": "tests.pinned_networks:Attention", "training__optimizer": "adamw",
                        "training__lr": 0.01, "training__clip_norm": 1.0},
    "stacked": {"model__name": "tests.pinned_networks:conv", "execution__particles_per_worker": 2},
    "movement_micro": {"model__name": "tests.pinned_networks:mlp", "pruning__score": "movement",
                       "training__micro_batch": 8, "rewind__weights": "init", "training__nesterov": True},
    "from_the_average": {"model__name": "tests.pinned_networks:mlp", "rewind__weights": "none",
                         "averaging__within": "none", "round__schedule": "retrain", "pruning__scope": "erk"},
}


def numbers(storage: Path, case: str) -> dict[str, Any]:
    """What is pinned of a run: by round, losses, projections of the average's tensors, and the mask's bits."""
    done = run(tiny(storage, name=case, **{**COMMON, **CASES[case]}))
    rounds = []
    for record in done.records:
        ticket = load_ticket(done.rundir.ticket_of(vars(record)).location)
        projections = {}
        for name in sorted(ticket.state):
            values = ticket.state[name].double().numpy().reshape(-1)
            projections[name] = [float(values @ np.cos(np.arange(values.size) * k)) for k in (1, 2)]
            projections[name].append(float(np.abs(values).sum()))
        bits = np.concatenate([ticket.masks[name].numpy().reshape(-1) for name in sorted(ticket.masks)])
        rounds.append({"losses": [record.average["test"]["loss"], record.average["validation"]["loss"],
                                  *(one["test"]["loss"] for one in record.particles)],
                       "spread": record.spread, "weights": projections, "mask": np.packbits(bits).tobytes().hex()})
    return {"rounds": rounds}


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_their_format(tmp_path: Path, case: str) -> None:
    pinned = json.loads(FILE.read_text())
    assert pinned["formats"] == FORMATS, "the formats were raised: write the file anew, see the top of this test"
    found, then = numbers(tmp_path, case)["rounds"], pinned["cases"][case]["rounds"]
    assert len(found) == len(then)
    for one, other in zip(found, then, strict=True):
        bits, expected = (np.unpackbits(np.frombuffer(bytes.fromhex(part["mask"]), np.uint8)) for part in (one, other))
        assert bits.size == expected.size
        assert int((bits != expected).sum()) <= FLIPS, "a mask is another one: raise the format, see the top"
        assert one["losses"] == pytest.approx(other["losses"], rel=TOLERANCE), "raise the format, see the top"
        assert one["spread"] == pytest.approx(other["spread"], rel=TOLERANCE)
        assert one["weights"].keys() == other["weights"].keys()
        for name, values in one["weights"].items():
            size = max(map(abs, other["weights"][name]))
            assert values == pytest.approx(other["weights"][name], abs=TOLERANCE * size), name


@pytest.mark.parametrize("change", [{"seed": 1}, {"averaging__statistics": "unaugmented"}, {"data__split_seed": 1}])
def test_the_comparison_notices_what_alters_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    change: dict[str, Any]) -> None:
    monkeypatch.setitem(CASES, "conv_swa_crops", {**CASES["conv_swa_crops"], **change})
    with pytest.raises(AssertionError):
        test_numbers_are_those_of_their_format(tmp_path, "conv_swa_crops")


def write() -> None:
    """Pin the numbers of today."""
    with tempfile.TemporaryDirectory() as folder:
        found = {case: numbers(Path(folder), case) for case in CASES}
    FILE.write_text(json.dumps({"formats": FORMATS, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    write()

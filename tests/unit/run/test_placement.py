"""Which nodes workers may run on, and in which order they fill them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from ray._private.label_utils import validate_label_selector

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.run.placement import Node, check_labels, eligible, matches, next_node, worker_labels

ASKED = {"CPU": 1.0, "GPU": 0.5}


def node(name: str, gpus: float = 1.0, free: float | None = None, **labels: str) -> Node:
    return Node(name, {"CPU": 8.0, "GPU": gpus}, labels, {"CPU": 8.0, "GPU": gpus if free is None else free})


def placed(nodes: list[Node], num: int, **values: Any) -> list[str | None]:
    """Where so many workers go that are started at once."""
    execution, found = ExecutionConfig(**values), list[str | None]()
    for _ in range(num):
        present = Counter(name for name in found if name is not None)
        found.append(next_node(nodes, execution, ASKED, present, present))
    return found


@pytest.mark.parametrize(("wanted", "fitting"), [
    ("spot", ["spot"]),
    ("!spot", ["demand", None]),
    ("in(spot, demand)", ["spot", "demand"]),
    ("in(spot)", ["spot"]),
    ("!in(spot,demand)", [None]),
])
def test_labels_are_read_as_ray_reads_them(wanted: str, fitting: list[str | None]) -> None:
    assert validate_label_selector({"market": wanted}) is None, "Ray takes it"
    kinds: list[str | None] = ["spot", "demand", None]
    labels = [{} if kind is None else {"market": kind} for kind in kinds]
    assert [kind for kind, one in zip(kinds, labels, strict=True) if matches(one, {"market": wanted})] == fitting


def test_all_labels_must_fit() -> None:
    assert matches({"a": "1", "b": "2"}, {"a": "1", "b": "!3"})
    assert not matches({"a": "1", "b": "3"}, {"a": "1", "b": "!3"})
    assert matches({}, {})


def test_a_kind_of_gpu_is_a_label_of_rays() -> None:
    execution = ExecutionConfig(accelerator_type="H100", labels={"market": "spot"})
    assert worker_labels(execution) == {"market": "spot", "ray.io/accelerator-type": "H100"}
    nodes = [Node("a", {"GPU": 1.0}, {"ray.io/accelerator-type": "H100", "market": "spot"}),
             Node("b", {"GPU": 2.0}, {"ray.io/accelerator-type": "A100", "market": "spot"})]
    assert eligible(nodes, execution) == [{"GPU": 1.0}]


def test_spread_takes_the_nodes_in_turn() -> None:
    nodes = [node("a", 2), node("b", 2), node("c", 2)]
    assert placed(nodes, 7) == ["a", "b", "c"] * 2 + ["a"]


def test_spread_prefers_the_node_with_more_room() -> None:
    assert placed([node("a", 1), node("b", 4)], 4) == ["b", "a", "b", "a"]


def test_pack_fills_one_node_before_the_next() -> None:
    assert placed([node("a", 1), node("b", 2), node("c", 1)], 7, placement="pack") == [
        "a", "a", "c", "c", "b", "b", "b"]


@pytest.mark.parametrize("policy", ["spread", "pack"])
def test_fractions_of_a_gpu_stay_on_one(policy: str) -> None:
    assert placed([node("a", 1), node("b", 1)], 6, placement=policy)[4:] == [None, None], "two halves a GPU"


def test_what_others_use_is_not_given_out() -> None:
    nodes = [node("a", 2, free=0.0), node("b", 2, free=1.0)]
    assert placed(nodes, 3) == ["b", "b", None]


def test_only_nodes_with_the_labels() -> None:
    nodes = [node("a", 4, market="demand"), node("b", 1, market="spot")]
    assert placed(nodes, 3, labels={"market": "spot"}) == ["b", "b", None]


@pytest.mark.parametrize(("values", "where", "says"), [
    ({"labels": {"market": "spt"}}, "execution.labels", "market=spot"),
    ({"stable_labels": {"role": "head"}}, "execution.stable_labels", "market=spot"),
    ({"accelerator_type": "H100"}, "execution.accelerator_type", "market=spot"),
    ({"stable_labels": {"role": "head"}, "autoscaling": True}, "execution.stable_labels", "market=spot"),
])
def test_labels_that_no_node_has_are_refused(values: dict[str, Any], where: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        check_labels([node("a", market="spot")], ExecutionConfig(**values))
    assert where in str(caught.value)
    assert says in str(caught.value)


def test_workers_nodes_may_be_yet_to_come() -> None:
    check_labels([node("a", role="head")], ExecutionConfig(
        labels={"market": "spot"}, accelerator_type="H100", stable_labels={"role": "head"}, autoscaling=True))
    check_labels([], ExecutionConfig())

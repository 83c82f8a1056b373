"""How configs are read from YAML: one rule for values, merges, keys that stand once, bounds."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml

from swamp_ray.config.reading import parse_config, parse_stored_config
from swamp_ray.config.yaml_reading import Scalar, dump_yaml, load_stored_yaml, load_yaml
from swamp_ray.errors import UserError


def plain(value: Any) -> Any:
    if isinstance(value, Scalar):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def read(text: str) -> Any:
    return plain(load_yaml(text, "this is not valid YAML", "here"))


def refusal(text: str) -> str:
    with pytest.raises(UserError) as error:
        load_yaml(text, "this is not valid YAML", "here")
    return str(error.value)


class TestValuesWithoutAType:
    @pytest.mark.parametrize(("text", "value"), [
        ("3e-4", 3e-4), ("2E5", 2e5), ("-1e3", -1e3), ("-.5", -0.5), (".25", 0.25), ("1.5e3", 1500.0), ("7.", 7.0),
        ("2_500", 2500), ("1_0.5", 10.5), ("0x1f", 31), ("0o20", 16), ("0b101", 5), ("007", 7), ("00", 0), ("-12", -12),
        ("on", True), ("No", False), ("TRUE", True), ("~", None), ("", None), ("Null", None),
        ("9:30:15", "9:30:15"), ("2024-02-30", "2024-02-30"), ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z"),
        ("=", "="), ("1e", "1e"), ("e5", "e5"), ("1e5x", "1e5x"), ("1.2.3", "1.2.3"), ("'3e-4'", "3e-4"),
        ('"yes"', "yes"), ("!!str 5", "5"), ("!!int '5'", 5), ("!!float 5", 5.0),
    ])
    def test_have_one_meaning(self, text: str, value: Any) -> None:
        found = read(f"a: {text}")["a"]
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize("text", ["017", "-010", "089", "0_12"])
    def test_an_octal_number_of_old_is_refused(self, text: str) -> None:
        with pytest.raises(UserError, match=rf"model\.options\.width: {text} begins with 0"):
            parse_config(f"model: {{options: {{width: {text}}}}}")
        assert parse_config(f"data: {{version: {text}}}").data.version == text


class TestMerges:
    def test_a_mapping_that_merges_can_be_used_again(self) -> None:
        found = read("a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc: {<<: *b, x: 4}\nd: *b\ne: {<<: [*b, *a], z: 0}\n")
        assert found["b"] == found["d"] == {"x": 1, "y": 3}
        assert found["c"] == {"x": 4, "y": 3}
        assert found["e"] == {"x": 1, "y": 3, "z": 0}

    @pytest.mark.parametrize("text", [
        "a: &a {x: {k: 1}}\nb: {<<: *a}\nc: {<<: [{x: 2}, {x: 3}]}\n",
        "a: &a {<<: {p: 1, q: 2}, q: 3}\nb: &b {<<: *a, r: 4}\nc: {<<: *b, p: 9}\n",
        "z: &z [&m {one: 1}, &n {two: 2, one: 0}]\nboth: {<<: [*n, *m]}\nlist: *z\n",
    ])
    def test_agree_with_plain_yaml(self, text: str) -> None:
        assert read(text) == yaml.safe_load(text)

    def test_an_override_leaves_the_other_users_of_an_anchor_alone(self) -> None:
        config = parse_config("model: {options: &o {width: 4}}\ndata: {name: 'a:b', options: *o}",
                              ["model.options.width=8", "model.options.deep.er=1"])
        assert (config.model.options, config.data.options) == ({"width": 8, "deep": {"er": 1}}, {"width": 4})

    @pytest.mark.parametrize(("text", "line"), [
        ("a: 1\nb: 2\na: 3\n", "'a' stands here twice (line 3"),
        ("x: &x {p: 1}\ny:\n  <<: *x\n  q: 1\n  q: 2\n", "'q' stands here twice (line 5"),
        ("a: {1: x, '1': y, 1: z}", "'1' stands here twice (line 1, column 19)"),
        ("a: {yes: 1, true: 2}", "stands here twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "'<<' stands here twice"),
        ("a: {<<: 3}", "must be followed by a mapping"),
        ("a: {[1]: 2}", "a key must be a text"),
    ])
    def test_what_stands_twice_is_named_by_its_line(self, text: str, line: str) -> None:
        assert line in refusal(text)


class TestBounds:
    @pytest.mark.parametrize(("text", "says"), [
        ("a: &a [1, *a]", "holds itself"), ("a: &a {b: {c: *a}}", "holds itself"), ("a: &a {<<: *a}", "merges itself"),
        ("a: &a {b: &b {<<: *a}}", "holds itself"),
        ("a: " + "[" * 3000, "nested too deep"), ("a: " + "[" * 60 + "]" * 60, "nested at most 50 deep"),
    ])
    def test_what_holds_itself_is_refused(self, text: str, says: str) -> None:
        assert says in refusal(text)

    @pytest.mark.parametrize("first", ["[1, 1, 1, 1, 1, 1, 1, 1]", "{k: [1, 1, 1, 1, 1, 1, 1]}"])
    def test_references_that_multiply_are_refused_at_once(self, first: str) -> None:
        lines = [f"a0: &a0 {first}"]
        lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)]
        assert "at most" in refusal("\n".join(lines))

    @pytest.mark.parametrize("first", ["{}", "{k: 1}"])
    def test_merges_that_multiply_cost_no_time(self, first: str) -> None:
        lines = [f"a0: &a0 {first}"]
        lines += [f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}" for level in range(1, 60)]
        began = time.monotonic()
        assert read("\n".join(lines))["a59"] == yaml.safe_load(first)
        assert time.monotonic() - began < 60, "it would take longer than the universe is old"

    def test_merges_of_many_keys_are_bounded(self) -> None:
        keys = ", ".join(f"k{number}: 1" for number in range(2000))
        lines = [f"a: &a {{{keys}}}", *(f"b{number}: {{<<: *a}}" for number in range(60))]
        assert "merges copy more than" in refusal("\n".join(lines))


class TestStored:
    TEXTS = ("1e-2", "0o17", "12:30:00", "yes", "2024-01-01", "017", "089", "-.5", "~", "", "=", "<<", "x", " a", "0b1",
             "1_0", ".inf", "null", "a: b", "- x", "#")

    def test_texts_come_back_as_texts_by_either_rule(self) -> None:
        values = {"texts": list(self.TEXTS), "numbers": [1e-5, 1e16, 0.1, 3, True, None]}
        dumped = dump_yaml(values)
        assert read(dumped) == load_stored_yaml(dumped, "", "") == yaml.safe_load(dumped) == values

    def test_what_an_earlier_version_has_written_is_read_as_it_was(self) -> None:
        text = yaml.safe_dump({"model": {"options": {"rate": "1e-2", "mode": "0o17"}}, "training": {"lr": 1e-3}})
        config = parse_stored_config(text, "run")
        assert config.model.options == {"rate": "1e-2", "mode": "0o17"}
        assert config.training.lr == 1e-3

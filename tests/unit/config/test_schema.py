from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.config.fields import Length, exact, parse_length
from swamp_ray.config.reading import build_config, differences, dump_config, load_config, parse_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import ParticlesConfig
from swamp_ray.errors import UserError
from swamp_ray.storage.names import canonical_json, digest_bytes


def refused(*overrides: str, text: str = "") -> str:
    """What the user reads."""
    with pytest.raises(UserError) as error:
        parse_config(text, overrides)
    return str(error.value)


class TestPrecedence:
    def test_defaults_then_file_then_overrides(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("pruning: {target: 0.8, rate: 0.3}\n")
        config = load_config(path, ["pruning.target=0.7"])
        assert (config.pruning.target, config.pruning.rate, config.pruning.scope) == (0.7, 0.3, "global")

    def test_later_overrides_win(self) -> None:
        assert parse_config("", ["seed=1", "seed=2"]).seed == 2

    def test_an_empty_file_is_the_defaults(self) -> None:
        assert parse_config("") == SwampConfig()
        assert parse_config("# only a comment\n") == SwampConfig()


class TestOverrides:
    @pytest.mark.parametrize(("override", "read"), [
        ("training.betas=[0.8, 0.9]", lambda config: config.training.betas == (0.8, 0.9)),
        ("training.nesterov=true", lambda config: config.training.nesterov is True),
        ("training.clip_norm=null", lambda config: config.training.clip_norm is None),
        ("training.lr=1e-3", lambda config: config.training.lr == 0.001),
        ("round.length=800 steps", lambda config: config.round.length == Length(800, "steps")),
        ("particles.schedule=[{sparsity: 0.5, count: 2}]", lambda config: config.particles.schedule[0].count == 2),
        ("model.options={width: 4}", lambda config: config.model.options == {"width": 4}),
        ("model.options.width=4", lambda config: config.model.options == {"width": 4}),
        ("start_from.path=a=b.pt", lambda config: config.start_from.path == "a=b.pt"),
        (" seed =3", lambda config: config.seed == 3),
        ("execution.channels_last=false", lambda config: config.execution.channels_last is False),
    ])
    def test_values_are_yaml(self, override: str, read: Any) -> None:
        assert read(parse_config("", [override]))

    @pytest.mark.parametrize("override", ["seed", "=3", " =3", ""])
    def test_malformed(self, override: str) -> None:
        assert "--set: an override must look like KEY=VALUE" in refused(override)

    def test_no_yaml(self) -> None:
        assert "--set: the value of seed is not valid YAML" in refused("seed=[1")

    def test_below_a_value(self) -> None:
        assert "--set: seed.deeper cannot be set: seed is not a section" in refused("seed.deeper=1", text="seed: 1")


class TestUnknownKeys:
    @pytest.mark.parametrize(("override", "hint"), [
        ("pruning.targt=0.9", "pruning.targt: there is no such option. Did you mean 'target'?"),
        ("prunning.target=0.9", "prunning: there is no such option. Did you mean 'pruning'?"),
        ("training.schedule.warm_up=1", "training.schedule.warm_up: there is no such option. Did you mean 'warmup'?"),
        ("particles.schedule=[{sparsity: 0.5, cout: 2}]", "Did you mean 'count'?"),
        ("start_from={path: a, prefx: b}", "start_from.prefx: there is no such option. Did you mean 'prefix'?"),
        ("zzz=1", "zzz: there is no such option. Known here: name, storage, seed"),
    ])
    def test_nearest_name(self, override: str, hint: str) -> None:
        assert hint in refused(override)

    def test_all_problems_are_listed(self) -> None:
        text = refused("seed=-1", "pruning.rate=2", "nothing=1")
        assert "several options are wrong:" in text
        assert all(f"- {key}: " in text for key in ("seed", "pruning.rate", "nothing"))

    def test_keys_that_are_no_words(self) -> None:
        assert "1: Keys should be strings" in refused(text="1: 2")
        assert "Keys should be strings" in refused(text="pruning: {true: 1}")

    @pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "pruning: {rate: 0.1, rate: 0.2}"])
    def test_a_key_that_stands_twice(self, text: str) -> None:
        assert "stands here twice" in refused(text=text)
        assert "stands here twice" in refused("training={lr: 1, lr: 2}")

    def test_anchors_and_merges_are_plain_yaml(self) -> None:
        config = parse_config("data: {options: {a: &x {b: 1, c: 2}, d: {<<: *x, b: 3}}}")
        assert config.data.options["d"] == {"b": 3, "c": 2}


OUT_OF_RANGE = {
    "seed": ["-1", "0.5", "x"],
    "data.validation": ["0", "1", "-0.1", ".nan"], "data.split_seed": ["-1"], "data.limit_train": ["0"],
    "data.limit_test": ["0"], "data.augment": ["mixup"], "data.crop_padding": ["-1"], "data.image_size": ["0"],
    "data.resize": ["0"], "data.loader_workers": ["-1"],
    "task.label_smoothing": ["1", "-0.1"],
    "training.batch_size": ["0", "1.5"], "training.micro_batch": ["0"], "training.optimizer": ["adam"],
    "training.lr": ["0", "-1", ".inf", ".nan"], "training.momentum": ["1", "-0.1"],
    "training.betas": ["[0.9]", "[1, 0]"],
    "training.eps": ["0"], "training.weight_decay": ["-1"], "training.clip_norm": ["0"],
    "training.schedule.name": ["cosin"], "training.schedule.warmup": ["-1", "never"],
    "training.schedule.milestones": ["[0]", "[1.0]"], "training.schedule.gamma": ["0", "1.1"],
    "training.schedule.final_lr": ["-1"],
    "dense.length": ["-1", "4 weeks", "true", ".inf", ".nan", "1.5 steps", "1e999"], "dense.warmup": ["-1"],
    "round.length": ["0", "-1", "[]"], "round.schedule": ["half"], "round.retrain_lr": ["0"],
    "rewind.weights": ["T0"], "rewind.schedule": ["resume"],
    "averaging.within": ["sma"], "averaging.start": ["0", "1", "1.2"], "averaging.lr": ["0"], "averaging.every": ["0"],
    "averaging.ema_decay": ["0", "1"],
    "particles.count": ["0", "-1"], "particles.combine": ["mean"],
    "particles.schedule": ["[{sparsity: 1.0, count: 2}]", "[{sparsity: 0.5, count: 0}]", "[{count: 2}]"],
    "particles.vary.lr": ["[0]"], "particles.vary.weight_decay": ["[-1]"], "particles.vary.length": ["[-1]"],
    "pruning.target": ["1.0", "-0.1", "95", "95%"], "pruning.rate": ["0", "1", "-0.2"], "pruning.scope": ["layer"],
    "pruning.empty_layers": ["ignore"],
    "execution.executor": ["dask"], "execution.device": ["tpu"], "execution.num_workers": ["0"],
    "execution.num_gpus": ["-1"], "execution.num_cpus": ["-1"], "execution.threads": ["0"],
    "execution.precision": ["fp16"], "execution.channels_last": ["maybe"], "execution.max_retries": ["-1"],
    "execution.max_waiting_states": ["-1"], "execution.log_every_s": ["0"],
    "execution.checkpoint_every": ["0.5", "10 steps", "-1"],
    "start_from": ["{}", "ticket.pt"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_out_of_range_is_refused_by_its_path(key: str, value: str) -> None:
    text = refused(f"{key}={value}")
    assert key.split("[")[0] in text
    assert "Traceback" not in text
    assert "validation error" not in text


class TestContradictions:
    @pytest.mark.parametrize(("overrides", "says"), [
        (["training.batch_size=100", "training.micro_batch=30"], "micro_batch must divide batch_size, but 100 % 30"),
        (["training.nesterov=true", "training.momentum=0"], "nesterov needs optimizer: sgd with momentum > 0"),
        (["training.nesterov=true", "training.optimizer=adamw"], "nesterov needs optimizer: sgd"),
        (["rewind.schedule=continue", "averaging.within=none", "dense.length=24"], "must be shorter than round.length"),
        (["rewind.schedule=continue", "averaging.within=none", "dense.length=900 steps", "round.length=800 steps"],
         "but got 900 steps and 800 steps"),
        (["rewind.schedule=continue"], "takes up a schedule that SWA replaces"),
        (["round.schedule=retrain"], "retrain ends at rate 0, where SWA has nothing to average"),
        (["round.schedule=retrain", "rewind.schedule=continue", "averaging.within=none"], "has a schedule of its own"),
        (["averaging.start=0.99"], "none would be taken"),
        (["averaging.every=7"], "none would be taken"),
        (["particles.schedule=[{sparsity: 0.9, count: 4}, {sparsity: 0.5, count: 2}]"], "by increasing sparsity"),
        (["particles.schedule=[{sparsity: 0.5, count: 4}, {sparsity: 0.5, count: 2}]"], "by increasing sparsity"),
        (["particles.min_count=5"], "of the smallest round, which has 4, but got 5"),
        (["particles.min_count=2", "particles.count=1", "particles.schedule=[{sparsity: 0.5, count: 4}]"],
         "of the smallest round, which has 1, but got 2"),
        (["particles.quorum=3"], "quorum needs deadline_s"),
        (["particles.deadline_s=60"], "deadline_s needs quorum"),
        (["particles.quorum=5", "particles.deadline_s=60"], "of the largest round, which has 4, but got 5"),
        (["particles.quorum=2", "particles.deadline_s=60", "particles.min_count=3"],
         "quorum must be at least min_count, which is 3, but got 2"),
        (["particle.num_workers=3"], "must divide training.batch_size, but 128 % 3 != 0"),
        (["particle.num_workers=4", "training.micro_batch=64"], "128 / 4 = 32 is no multiple of 64"),
        (["particle.num_workers=2", "execution.executor=inline"], "must be 1 with executor: inline"),
        (["particle.num_workers=2", "execution.num_gpus=0.5"], "at least 1 with particle.num_workers: 2, but got 0.5"),
        (["execution.autoscaling=true", "execution.address=auto"], "device must be cpu or cuda"),
        (["execution.labels={ray.io/market-type: '!!spot'}"], "must be a label such as spot, !spot or in(a, b)"),
        (["execution.stable_labels={'a b': c}"], "must have keys such as ray.io/node-group, but one is 'a b'"),
        (["averaging.num_shards=0"], "must be greater than 0"),
    ])
    def test_are_refused(self, overrides: list[str], says: str) -> None:
        assert says in refused(*overrides)

    @pytest.mark.parametrize("overrides", [
        ["rewind.schedule=continue", "averaging.within=none"],
        ["round.schedule=retrain", "averaging.within=ema"],
        ["averaging.within=none", "averaging.every=0", "averaging.start=0.99"],
        ["averaging.every=6"],
        ["execution.checkpoint_every=0"],
        ["dense.length=0"],
        ["particles.min_count=4", "particles.count=1", "particles.schedule=[{sparsity: 0, count: 4}]"],
        ["particles.quorum=4", "particles.deadline_s=60", "particles.count=1",
         "particles.schedule=[{sparsity: 0.5, count: 4}]"],
        ["particles.on_failure=drop", "particles.min_count=4"],
        ["particle.num_workers=4", "training.micro_batch=16"],
        ["particle.num_workers=2", "execution.num_gpus=0", "execution.device=cpu"],
        ["execution.labels={ray.io/market-type: spot, zone: '!in(a, b-2)'}"],
        ["execution.autoscaling=true", "execution.address=auto", "execution.device=cuda"],
    ])
    def test_what_only_looks_like_one(self, overrides: list[str]) -> None:
        parse_config("", overrides)


class TestFiles:
    def test_missing_names_a_similar_one(self, tmp_path: Path) -> None:
        (tmp_path / "quickstart.yaml").touch()
        with pytest.raises(UserError, match=r"does not exist\. Did you mean 'quickstart.yaml'\?"):
            load_config(tmp_path / "quickstrat.yaml")
        with pytest.raises(UserError, match=r"a\.yaml: the config does not exist, and neither does the folder"):
            load_config(tmp_path / "nowhere" / "a.yaml")
        with pytest.raises(UserError, match=r"must be a file, but this is a folder\. There are: quickstart\.yaml\."):
            load_config(tmp_path)

    @pytest.mark.parametrize(("content", "says"), [
        (b"a: [1", "not valid YAML"), (b"- 1\n- 2\n", "must be a mapping of sections, but got 'list'"),
        (b"text", "must be a mapping"), (b"\xff\xfe\x00", "cannot be read"), (b"a: 1\n\tb: 2", "not valid YAML"),
        (b"seed: !!python/object/apply:os.getcwd []", "not valid YAML"), (b"pruning: 3", "pruning: "),
    ])
    def test_no_config(self, tmp_path: Path, content: bytes, says: str) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            load_config(path)
        assert says in str(error.value)
        assert str(error.value).startswith(str(path))


lengths = st.one_of(
    st.floats(0, 1e9).map(Length), st.integers(0, 10**9).map(lambda amount: Length(float(amount), "steps")))


class TestRoundTrip:
    @given(lengths)
    def test_lengths(self, length: Length) -> None:
        assert parse_length(str(length)) == length

    @given(
        st.floats(0, 0.999), st.floats(0.001, 0.999), st.floats(1e-9, 1e3), lengths, st.integers(1, 99),
        st.text(min_size=1, max_size=5), st.booleans(),
    )
    def test_reading_back_gives_an_equal_config(
        self, target: float, rate: float, lr: float, length: Length, count: int, name: str, nesterov: bool
    ) -> None:
        config = build_config({
            "name": name, "pruning": {"target": target, "rate": rate}, "training": {"lr": lr, "nesterov": nesterov},
            "dense": {"length": length}, "particles": {"count": count, "vary": {"length": [length]}},
            "start_from": {"path": name}, "model": {"options": {"width": [1, 2.5, None, "x"]}},
        })
        again = parse_config(dump_config(config))
        assert again == config
        assert dump_config(again) == dump_config(config)

    def test_sections_keep_their_order(self) -> None:
        assert list(yaml.safe_load(dump_config(SwampConfig()))) == list(SwampConfig.model_fields)

    def test_the_recipe_has_no_execution(self) -> None:
        recipe = SwampConfig().recipe()
        assert set(SwampConfig.model_fields) - set(recipe) == {
            "name", "storage", "execution", "identity", "keep", "particle"}
        assert recipe == parse_config("", ["name=x", "storage=y", "execution.threads=2"]).recipe()

    def test_the_recipe_has_no_policy_for_failures(self) -> None:
        policy = ["particles.on_failure=retry", "particles.max_reseeds=5", "particles.min_count=2",
                  "particles.quorum=3", "particles.deadline_s=9.5"]
        assert parse_config("", policy).recipe() == SwampConfig().recipe()
        assert parse_config("", ["particles.count=5"]).recipe() != SwampConfig().recipe()

    def test_with_values_validates_again(self) -> None:
        assert with_values(SwampConfig(), {"execution.executor": "inline", "seed": 3}).execution.executor == "inline"
        assert with_values(SwampConfig(), {"start_from.path": "a"}).start_from is not None
        with pytest.raises(UserError, match="Did you mean 'seed'"):
            with_values(SwampConfig(), {"sed": 3})

    def test_values_are_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            SwampConfig().seed = 3


class TestDifferences:
    def test_leaves_with_their_paths(self) -> None:
        old, new = SwampConfig(), parse_config("", ["pruning.target=0.9", "training.schedule.name=linear", "seed=1"])
        assert differences(old.model_dump(mode="json"), new.model_dump(mode="json")) == [
            "seed: 0 -> 1", "training.schedule.name: 'cosine' -> 'linear'", "pruning.target: 0.95 -> 0.9"]

    def test_equal(self) -> None:
        assert differences(SwampConfig().model_dump(), SwampConfig().model_dump()) == []

    def test_sections_that_come_and_go(self) -> None:
        assert differences({"a": None}, {"a": {"b": 1}}) == ["a: None -> {'b': 1}"]
        assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]


class TestLength:
    @pytest.mark.parametrize(("given", "length"), [
        (4, Length(4)), (0, Length(0)), (0.5, Length(0.5)), ("4", Length(4)), ("4 epochs", Length(4)),
        ("1 epoch", Length(1)), ("0.5 epochs", Length(0.5)), ("800 steps", Length(800, "steps")),
        ("1 step", Length(1, "steps")), ("16k steps", Length(16000, "steps")), ("16 k steps", Length(16000, "steps")),
        ("1.5k steps", Length(1500, "steps")), (" 3epochs ", Length(3)), ("1e6 steps", Length(1e6, "steps")),
        (1e-5, Length(1e-5)), (1e16, Length(1e16)), (Length(3), Length(3)),
    ])
    def test_parses(self, given: object, length: Length) -> None:
        assert parse_length(given) == length

    @pytest.mark.parametrize("given", ["-1", "", "epochs", "4 weeks", "4 epochs 3", "1.5 steps", "nan", "inf", "1,5",
                                       True, None, [4], -1, math.nan, math.inf, "1e999"])
    def test_refuses(self, given: object) -> None:
        with pytest.raises(ValueError, match="must be"):
            parse_length(given)

    def test_steps(self) -> None:
        assert Length(1.5).steps(10) == 15
        assert Length(0.25).steps(10) == 2
        assert Length(7, "steps").steps(10) == 7

    def test_text(self) -> None:
        lengths = [Length(1), Length(2), Length(0.5), Length(1, "steps"), Length(1e6, "steps")]
        assert [str(length) for length in lengths] == ["1 epoch", "2 epochs", "0.5 epochs", "1 step", "1000000 steps"]


def test_particles_by_sparsity() -> None:
    particles = ParticlesConfig.model_validate(
        {"count": 1, "schedule": [{"sparsity": 0.5, "count": 2}, {"sparsity": 0.9, "count": 4}]})
    assert [particles.at(sparsity) for sparsity in (0.0, 0.49, 0.5, 0.89, 0.9, 0.99)] == [1, 1, 2, 2, 4, 4]
    assert ParticlesConfig(count=3).at(0.9) == 3


def test_exact_is_what_was_written() -> None:
    assert exact(0.2) == Fraction(1, 5)
    assert exact(1e-7) == Fraction(1, 10**7)


@pytest.mark.parametrize(("tree", "text"), [
    ({"training": {"lr": True}}, "training.lr: must be a number, but got true"),
    ({"seed": True}, "seed: must be a number, but got true"),
    ({"particles": {"vary": {"lr": [True]}}}, "particles.vary.lr: must hold numbers"),
    ({"pruning": {"target": "0.9"}}, "pruning.target: must be a number, not a text, but got '0.9'"),
    ({"pruning": {"include": "a"}}, "pruning.include: must be a list, such as [a, b], but got 'a'"),
    ({"particles": "x"}, "particles: must be a section: a mapping of options, but got 'x'"),
    ({"training": {"betas": [0.9]}}, "training.betas.1: is missing"),
    ({"seed": None}, "seed: must be a whole number, but got nothing"),
    ({"execution": {"compile": 3}}, "execution.compile: must be true or false, but got 3"),
])
def test_wrong_types_in_plain_words(tree: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        build_config(tree)


def test_an_error_in_an_override_does_not_blame_the_file() -> None:
    with pytest.raises(UserError, match=r"^--set: pruning\.rate: must be less than 1"):
        parse_config("seed: 1", ["pruning.rate=2"], "file.yaml")
    with pytest.raises(UserError, match=r"^file\.yaml: "):
        parse_config("pruning: {rate: 2}", ["seed=1"], "file.yaml")


def test_broken_yaml_is_named_by_line_and_column() -> None:
    with pytest.raises(UserError, match=r"not valid YAML: expected ',' or '\]', but got ':' \(line 2, column 2\)"):
        parse_config("seed: [1\nb: 2", source="file.yaml")


def test_an_option_that_is_new_leaves_the_recipes_of_runs_that_do_not_use_it_as_they_were() -> None:
    """The digest that run.json has had since recipes are compared: who adds an option names it in NEUTRAL_KEYS."""
    assert digest_bytes(canonical_json(SwampConfig().recipe())) == (
        "48dfd82b5bb70aefef726d35c94c41a3e73f56ccfdc1cf6250ca0dc4c91b4e55")

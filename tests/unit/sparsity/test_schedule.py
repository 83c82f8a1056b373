from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.errors import UserError
from swamp_ray.sparsity.schedule import plan_survivors


class TestPlan:
    def test_by_hand(self) -> None:
        # 1000 * 0.8^r: 1000, 800, 640, 512 -> 500 is the target; 512 > 500 >= 409.6.
        assert plan_survivors(1000, 0.2, 0.5) == [1000, 800, 640, 512, 500]
        # 7 * 0.5^r: 3.5 rounds up, 1.75 to 2, 0.875 to 1; the goal is 0.7.
        assert plan_survivors(7, 0.5, 0.9) == [7, 4, 2, 1, 1]

    def test_a_rate_that_reaches_the_target_exactly(self) -> None:
        # In floating point 0.8^2 = 0.6400000000000001 > 0.64, which would add a round.
        assert plan_survivors(100, 0.2, 0.36) == [100, 80, 64]
        assert plan_survivors(1000, 0.1, 0.271) == [1000, 900, 810, 729]

    def test_one_shot(self) -> None:
        assert plan_survivors(1000, 0.9, 0.9) == [1000, 100]
        assert plan_survivors(1000, 0.99, 0.9) == [1000, 100]

    def test_target_zero_is_the_dense_network(self) -> None:
        assert plan_survivors(123, 0.2, 0.0) == [123]

    def test_from_a_ticket(self) -> None:
        assert plan_survivors(1000, 0.5, 0.9, start=400) == [400, 200, 100]
        assert plan_survivors(1000, 0.5, 0.9, start=100) == [100]
        assert plan_survivors(1000, 0.5, 0.9, start=101) == [101, 100]
        assert plan_survivors(1000, 0.5, 0.0, start=1000) == [1000]

    def test_a_ticket_sparser_than_the_target_is_refused_with_a_value_that_works(self) -> None:
        with pytest.raises(UserError, match="must not be denser") as error:
            plan_survivors(1_000_000, 0.2, 0.5, start=123_457)
        advised = float(str(error.value).split()[-1].rstrip("."))
        assert plan_survivors(1_000_000, 0.2, advised, start=123_457)[0] == 123_457

    @pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
    def test_rates_out_of_range(self, rate: float) -> None:
        with pytest.raises(UserError, match=r"pruning.rate: the rate must lie in \(0, 1\), but got"):
            plan_survivors(100, rate, 0.5)

    @pytest.mark.parametrize("target", [1, 1.0001, -0.1, float("nan")])
    def test_targets_out_of_range(self, target: float) -> None:
        with pytest.raises(UserError, match=r"pruning.target: the target sparsity must lie in \[0, 1\)"):
            plan_survivors(100, 0.2, target)

    def test_an_empty_network_is_refused(self) -> None:
        with pytest.raises(UserError, match="at least one of 100 weights"):
            plan_survivors(100, 0.2, 0.996)
        assert plan_survivors(100, 0.2, 0.995)[-1] == 1

    def test_a_plan_without_end_is_refused(self) -> None:
        with pytest.raises(UserError, match="the rate is too small to reach the target in 10000 rounds"):
            plan_survivors(1000, 1e-9, 0.5)

    rates = st.integers(1, 999).map(lambda n: n / 1000)
    targets = st.integers(0, 999).map(lambda n: n / 1000)

    @given(st.integers(1000, 10**8), st.integers(50, 999).map(lambda n: n / 1000), targets)
    def test_equals_the_formula_over_integers(self, num: int, rate: float, target: float) -> None:
        keep, left = 1000 - round(rate * 1000), 1000 - round(target * 1000)
        plan = plan_survivors(num, rate, target)
        last = len(plan) - 1
        for index, kept in enumerate(plan[:-1]):
            # floor(x + 1/2) with x = num * keep^r / 1000^r, in integers.
            assert kept == (2 * num * keep**index + 1000**index) // (2 * 1000**index)
            assert keep**index * 1000 > left * 1000**index
        assert plan[-1] == (2 * num * left + 1000) // 2000
        if plan[-1] != num:
            assert keep**last * 1000 <= left * 1000**last

    @given(st.integers(1000, 10**6), st.integers(50, 900).map(lambda n: n / 1000), targets, st.data())
    def test_never_grows_and_ends_at_the_target(
        self, num: int, rate: float, target: float, data: st.DataObject
    ) -> None:
        last = int(num * (1 - Fraction(str(target))) + Fraction(1, 2))
        start = data.draw(st.integers(last, num))
        plan = plan_survivors(num, rate, target, start=start)
        assert plan[0] == start
        assert plan[-1] == last
        assert plan == sorted(plan, reverse=True)

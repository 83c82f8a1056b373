from __future__ import annotations

import pickle
import threading

import pytest

from swamp_ray.errors import CorruptArtifactError, DivergedError, Interrupted, RunError, SwampError, UserError, nearest


class TestUserError:
    @pytest.mark.parametrize(("error", "text"), [
        (UserError("rate must lie in (0, 1)"), "rate must lie in (0, 1)."),
        (UserError("must be positive", got=-1, where="a.b"), "a.b: must be positive, but got -1."),
        (UserError("no such model", got="resnt", do="Did you mean 'resnet'?"),
         "no such model, but got 'resnt'. Did you mean 'resnet'?"),
        (UserError("must not be empty", got=""), "must not be empty, but got ''."),
        (UserError("is it there?", do="Look."), "is it there? Look."),
        (UserError("must be true", got=False), "must be true, but got False."),
        (UserError("must be 1", got=0), "must be 1, but got 0."),
    ])
    def test_text(self, error: UserError, text: str) -> None:
        assert str(error) == text

    @pytest.mark.parametrize("error", [
        UserError("what", got=5, do="Do it", where="here"),
        UserError("what", got="5", do="Its own error:\nKeyError: 3", where="here"),
        UserError("what", got=None),
        UserError("what", got=[1, "a"]),
        UserError("what\n", got=1.5, where="here"),
    ])
    def test_the_text_survives_processes(self, error: UserError) -> None:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is UserError
        assert str(again) == str(error)
        assert (again.what, again.do, again.where) == (error.what, error.do, error.where)
        assert str(pickle.loads(pickle.dumps(again))) == str(error)

    def test_what_was_got_need_not_be_picklable(self) -> None:
        error = UserError("must be a number", got=threading.Lock())
        assert str(pickle.loads(pickle.dumps(error))) == str(error)

    def test_subclasses_and_notes_survive(self) -> None:
        error = OwnError("what", got=3)
        error.add_note("seen in round 2")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is OwnError
        assert again.__notes__ == ["seen in round 2"]

    def test_is_a_value_error_and_can_be_raised_again(self) -> None:
        with pytest.raises(ValueError, match="but got 3"):
            raise pickle.loads(pickle.dumps(UserError("what", got=3)))


class OwnError(UserError):
    """A subclass that tests can pickle."""


def test_diverged_says_where_and_what_to_do() -> None:
    error = DivergedError("round 3, particle 1", 4, 170, 0.1, float("nan"))
    assert str(error).startswith(
        "round 3, particle 1 diverged: the loss was nan at step 170 (epoch 4, learning rate 0.1).")
    assert "training.clip_norm" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.particle, again.epoch, again.step, again.lr) == ("round 3, particle 1", 4, 170, 0.1)


@pytest.mark.parametrize(("error", "code"), [
    (SwampError("x"), 1), (RunError("x"), 1), (CorruptArtifactError("x"), 1), (DivergedError("p", 0, 0, 1, 1), 1),
    (UserError("x"), 2), (Interrupted("x"), 130),
])
def test_exit_codes(error: SwampError, code: int) -> None:
    assert error.exit_code == code
    assert type(error).exit_code == code


def test_nearest() -> None:
    assert nearest("targt", ["target", "rate"]) == "Did you mean 'target'?"
    assert nearest("zzz", ["target", "rate"]) == ""
    assert nearest("x", []) == ""
    assert nearest("rate", iter(["rates", "rate"])) == "Did you mean 'rate'?"

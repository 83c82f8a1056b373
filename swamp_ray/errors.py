"""What can go wrong, in words that say what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class SwampError(Exception):
    """Any failure that swamp_ray can explain; its text is meant for the user."""

    exit_code = EXIT_FAILED


class UserError(SwampError, ValueError):
    """Something in the config, the data or the arguments has to be changed by the user.

    Raised before any work starts. The text is assembled as
    ``WHERE: WHAT, but got GOT. DO``.

    Args:
        what: The condition that must hold, e.g. ``"rate must lie in (0, 1)"``.
        got: The value that was found; left out of the text if None.
        do: What to change, as a full sentence.
        where: Option path, file or argument, e.g. ``"pruning.rate"``.
    """

    exit_code = EXIT_WRONG_USE

    def __init__(self, what: str, *, got: object = None, do: str = "", where: str = "") -> None:
        self.what = what
        self.got = got
        self.do = do
        self.where = where
        text = f"{where}: {what}" if where else what
        if got is not None:
            text += f", but got {got!r}" if isinstance(got, str) else f", but got {got}"
        text = text if text.endswith((".", "!", "?", "\n")) else text + "."
        super().__init__(f"{text}{'' if text.endswith(chr(10)) else ' '}{do}".rstrip())

    def __reduce__(self) -> tuple[object, ...]:
        # What was got may not be picklable; the text must come through as it is.
        got = None if self.got is None else str(self.got)
        return (_rebuild_user_error, (type(self), str(self)), {**self.__dict__, "got": got})


def _rebuild_user_error(kind: type[UserError], text: str) -> UserError:
    return kind.__new__(kind, text)


class RunError(SwampError):
    """A run stopped because something failed while it was working."""


class DivergedError(RunError):
    """A particle's loss became NaN or infinite.

    Args:
        particle: Human-readable name of the particle, e.g. ``"round 3, particle 1"``.
        epoch: Epoch, counted from 0, in which it happened.
        step: Optimiser step, counted from 0 over the whole particle.
        lr: Learning rate of that step.
        loss: The offending value.
    """

    def __init__(self, particle: str, epoch: int, step: int, lr: float, loss: float) -> None:
        self.particle = particle
        self.epoch = epoch
        self.step = step
        self.lr = lr
        self.loss = loss
        super().__init__(
            f"{particle} diverged: {self.what}. Lower training.lr, lengthen the warm-up, or set training.clip_norm."
        )

    @property
    def what(self) -> str:
        """What was seen, without who and what to do."""
        return f"the loss was {self.loss} at step {self.step} (epoch {self.epoch}, learning rate {self.lr:g})"

    def __reduce__(self) -> tuple[object, ...]:
        return (DivergedError, (self.particle, self.epoch, self.step, self.lr, self.loss))


class LostRankError(RunError):
    """A process that trains a particle together with others was lost, or cannot reach them any more."""


class CorruptArtifactError(RunError):
    """A stored file does not hold the bytes that were written."""


class MissingPayloadError(CorruptArtifactError):
    """A finished result whose payload is not there: deleted to save space, or removed by hand."""


class Interrupted(SwampError):
    """The user (or the system) asked the run to stop; it can be resumed."""

    exit_code = EXIT_INTERRUPTED


def nearest(word: str, candidates: Iterable[str]) -> str:
    """``"Did you mean 'x'?"`` for the closest candidate, or an empty string."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"Did you mean {found[0]!r}?" if found else ""

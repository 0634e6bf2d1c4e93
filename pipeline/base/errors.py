"""The error tree: every failure a user can meet, its exit code, and one line that says the way out.

Exit codes (the whole product uses these four):

==  =========================================================================================
0   done
1   it failed during the work (:class:`FailedError`)
2   it could be known before the work started (:class:`RefusedError`): usage, recipe, input
3   interrupted, and resumable by the same command (:class:`InterruptedRunError`)
==  =========================================================================================
"""

from __future__ import annotations


class VitpipeError(Exception):
    """Root of the tree. ``str(error)`` is one line for the user: what is wrong, then the way out."""

    exit_code = 1

    def __init__(self, message: str, way_out: str = "") -> None:
        self.message = message
        self.way_out = way_out
        super().__init__(message, way_out)

    def __str__(self) -> str:
        return f"{self.message} - {self.way_out}" if self.way_out else self.message


class RefusedError(VitpipeError):
    """Could be known before the work started: nothing was begun, nothing was written."""

    exit_code = 2


class RecipeError(RefusedError):
    """A recipe that cannot be honoured. Holds every problem found, not only the first."""

    def __init__(self, problems: list[str], source: str = "recipe") -> None:
        self.problems, self.source = problems, source
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[str], str]]:
        return type(self), (self.problems, self.source)


class InputError(RefusedError):
    """The input is missing, empty or not of the expected kind."""


class MismatchError(RefusedError):
    """Something of that name exists and was made from other settings; the differing fields are named."""


class StoreAccessError(RefusedError):
    """The store cannot be reached, or it denies the request. Never holds a credential."""


class FailedError(VitpipeError):
    """Failed during the work."""


class DamageError(FailedError):
    """Stored bytes are not what their card or index says."""


class TooManyRejectsError(FailedError):
    """More images were rejected than the recipe allows."""


class ConflictError(FailedError):
    """Another writer won a create-only put, with other content."""


class SupersededError(FailedError):
    """A newer attempt of the same run exists, so this one must not commit anything more."""


class DivergedError(FailedError):
    """A loss or a gradient is not finite."""


class InterruptedRunError(VitpipeError):
    """Stopped from outside; the same command resumes it."""

    exit_code = 3

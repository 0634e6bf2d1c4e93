"""The error tree: exit codes, one line, and the way back from another process."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from pipeline.base import errors
from pipeline.base.errors import FailedError, InterruptedRunError, RecipeError, RefusedError, VitpipeError


def tree(kind: type[VitpipeError] = VitpipeError) -> Iterator[type[VitpipeError]]:
    """*kind* and all kinds below it that the module defines."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


def made(kind: type[VitpipeError]) -> VitpipeError:
    """An error of *kind*."""
    return kind(["first", "second"], "r.yaml") if kind is RecipeError else kind("what", "way out")


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[VitpipeError]) -> None:
    error = made(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_the_branch_decides_the_exit_code(kind: type[VitpipeError]) -> None:
    branches = {RefusedError: 2, FailedError: 1, InterruptedRunError: 3, VitpipeError: 1}
    expected = next(code for branch, code in branches.items() if issubclass(kind, branch))
    assert kind.exit_code == expected
    assert kind.__doc__


def test_an_error_says_what_and_the_way_out() -> None:
    assert str(FailedError("it broke", "try again")) == "it broke - try again"
    assert str(FailedError("it broke")) == "it broke"


def test_a_recipe_error_holds_every_problem() -> None:
    error = RecipeError(["first", "second"], "r.yaml")
    assert error.problems == ["first", "second"]
    assert str(error) == "r.yaml: first\nr.yaml: second"

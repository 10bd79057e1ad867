"""The exception tree: exit codes and who is caught by what."""

from __future__ import annotations

import inspect

import pytest

from moesaic import errors

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_a_moesaic_error_in_the_drawing(error: type[Exception]) -> None:
    """One `except MoesaicError` catches all, and the drawing in the docstring lists each."""
    assert issubclass(error, errors.MoesaicError)
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("error", ALL)
def test_exit_codes(error: type[errors.MoesaicError]) -> None:
    """Usage errors end the program with 2, all others with 1."""
    assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)


def test_what_the_user_asked_wrongly_is_a_usage_error() -> None:
    """Unknown names, unreachable budgets and existing outputs are the user's to correct."""
    for error in (errors.UnknownName, errors.BudgetInfeasible, errors.OutputExists):
        assert issubclass(error, errors.UsageError)

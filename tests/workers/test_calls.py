"""Calls of which a message is lost are made again; tested with a stand-in for Ray."""

from typing import Any

import pytest

from workers import calls
from workers.calls import TRIES, Call, Calls

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Unreliable:
    """References are their own outcomes: what is an exception is raised."""

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref != "unfinished"]
        return done, [ref for ref in refs if ref not in done]


@pytest.fixture(autouse=True)
def unreliable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ray", Unreliable())


def lost() -> Exception:
    from ray.exceptions import ActorUnavailableError

    return ActorUnavailableError("a message was lost", None)


def taken(outcomes: list[Any]) -> tuple[list[Any], list[Exception], int]:
    """What a call with these outcomes gives in the end, and how often it was made."""
    answers: list[Any] = []
    errors: list[Exception] = []
    rest = iter(outcomes)
    in_flight = Calls()
    in_flight.make(Call(lambda: (next(rest), "delta"), lambda *both: answers.append(both), errors.append))
    while refs := in_flight.refs():
        in_flight.take(refs[0])
    return answers, errors, len(outcomes) - len(list(rest))


def test_a_call_of_which_a_message_is_lost_is_made_again() -> None:
    assert taken([lost(), lost(), "report"]) == ([("report", "delta")], [], 3)


def test_an_actor_that_never_answers_is_gone() -> None:
    answers, errors, made = taken([lost() for _ in range(TRIES + 1)])
    assert (answers, len(errors), made) == ([], 1, TRIES)


def test_other_errors_are_not_made_again() -> None:
    from ray.exceptions import ActorDiedError

    dead = ActorDiedError()
    assert taken([dead, "report"]) == ([], [dead], 1)


def test_what_was_lost_with_an_argument_is_no_lost_message() -> None:
    from ray.exceptions import ObjectLostError, RayTaskError

    error = RayTaskError("push", "traceback", lost())
    assert taken([error.as_instanceof_cause(), "report"])[2] == 1
    assert not calls.is_caused_by(error, ObjectLostError)


def test_answers_that_are_there_are_taken_when_the_rest_is_abandoned() -> None:
    answers: list[Any] = []
    in_flight = Calls()
    for ref in ("receipt", "unfinished", lost()):
        in_flight.make(Call(lambda ref=ref: (ref, None), lambda first, _: answers.append(first), answers.append))
    in_flight.abandon()
    assert answers == ["receipt"]
    assert in_flight.refs() == []

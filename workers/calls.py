"""Calls of actors that are made again where a message of theirs was lost.

Ray repeats nothing by itself here, and tells only that an actor is unavailable: the call may have been carried out, or
not. All calls of this package are harmless twice.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

TRIES = 3
"""Calls in a row without an answer that make an actor one that is gone."""


@dataclass(slots=True)
class Call:
    """A call with two answers: the first is read, the second is passed on as a reference.

    Attributes:
        make: makes the call; gives two references.
        take: gets the first answer, and the reference of the second.
        fail: gets the error.
    """

    make: Callable[[], tuple[Any, Any]]
    take: Callable[[Any, Any], None]
    fail: Callable[[RayError], None]
    second: Any = None
    tries: int = 0


class Calls:
    """Calls in flight, in the order in which they were made."""

    def __init__(self) -> None:
        self._calls: dict[Any, Call] = {}

    def __contains__(self, ref: Any) -> bool:
        return ref in self._calls

    def refs(self) -> list[Any]:
        """What to wait for."""
        return list(self._calls)

    def make(self, call: Call) -> None:
        """Make a call, for the first time or again."""
        call.tries += 1
        first, call.second = call.make()
        self._calls[first] = call

    def take(self, ref: Any) -> None:
        """Take an answer that is there; where a message was lost, the call is made again."""
        call = self._calls[ref]
        try:
            first = ray.get(ref)
        except RayError as error:
            del self._calls[ref]
            if _is_lost(error) and call.tries < TRIES:
                self.make(call)
            else:
                call.fail(error)
        else:
            del self._calls[ref]
            call.take(first, call.second)

    def abandon(self) -> None:
        """Take the answers that are there, and forget the other calls."""
        calls, self._calls = self._calls, {}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0.0) if calls else ([], [])
        for ref in done:
            with suppress(RayError):
                calls[ref].take(ray.get(ref), calls[ref].second)


def ask(call: Callable[[], Any], timeout: float | None = None) -> Any:
    """The answer to a call, waited for.

    Raises:
        RayError: the actor is gone, or the call failed.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            return ray.get(call(), timeout=timeout)
        except RayError as error:
            if not (tries_left and _is_lost(error)):
                raise
    raise AssertionError


def is_caused_by(error: RayError, *kinds: type[Exception]) -> bool:
    """Whether a call failed because of something that it was handed, or that it raised."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, kinds)


def one_line(error: BaseException) -> str:
    """What went wrong, without the lines that tell which actor it was."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return " ".join(" ".join(lines).split())[:160] or type(error).__name__


def _is_lost(error: RayError) -> bool:
    return isinstance(error, ActorUnavailableError) and not isinstance(error, RayTaskError)

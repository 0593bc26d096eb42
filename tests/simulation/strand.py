"""A piece of a process that can be stopped in the middle and woken later, while everything else goes on.

Python code that was not written to be interrupted needs a thread for it; only one thread ever runs at a time, and the
one that runs is decided by the simulator, so a history stays a function of its seed.
"""

import threading
from collections.abc import Callable


class Strand:
    """Runs a function in a thread of its own until it ends or pauses.

    >>> strand = Strand(lambda: (print("a"), strand.pause(), print("b")))
    >>> strand.resume()
    a
    False
    >>> strand.resume()
    b
    True
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = self.is_done = False
        self._error: BaseException | None = None

    def resume(self) -> bool:
        """Run on until the function ends (true; what it raised is raised here) or pauses (false)."""
        if not self._started:
            self._started = True
            self._thread.start()
        self._go.release()
        self._back.acquire()
        if self.is_done:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.is_done

    def pause(self) -> None:
        """Called by the function: wait here for the next `resume`."""
        self._back.release()
        self._go.acquire()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._function()
        except BaseException as error:
            self._error = error
        self.is_done = True
        self._back.release()

"""A kernel that never returns must not take the rest of a run with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `expired(stage)` in a thread of its own when a stage takes longer than it may; None never expires.

    Python's main thread may wait inside a CUDA call for ever: nothing there can be interrupted, so `expired` has to end
    or replace the process.
    """

    def __init__(self, expired: Callable[[str], None], *, poll: float = 0.5) -> None:
        self._expired, self._poll = expired, poll
        self._lock = threading.Lock()
        self._stage, self._deadline = "", float("inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="convt-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def stage(self, what: str, seconds: float | None = None) -> None:
        """From now on `what` runs, for `seconds` at most."""
        with self._lock:
            self._stage = what
            self._deadline = float("inf") if seconds is None else time.monotonic() + seconds

    def _watch(self) -> None:
        while not self._stop.wait(self._poll):
            with self._lock:
                late, stage = time.monotonic() > self._deadline, self._stage
                if late:
                    self._deadline = float("inf")
            if late:
                self._expired(stage)

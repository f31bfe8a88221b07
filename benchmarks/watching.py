"""The highest value of something that changes while other code runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Highest:
    """Look at a number every few milliseconds, from another thread, as long as the context lasts.

    Attributes:
        value: The highest one seen.
    """

    def __init__(self, look: Callable[[], int]) -> None:
        self.value = 0
        self._look = look
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.003):
            self.value = max(self.value, self._look())

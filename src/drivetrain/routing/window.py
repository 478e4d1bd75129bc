"""Counts over the last seconds, forgotten slice by slice; the memory of `breaker` and `throttle`."""

from __future__ import annotations


class Window:
    """Totals of a few kinds of event over the last `slices` slices of `slice_ns`.

    Costs one small list per slice, made once. Time that stands still or goes back counts as the newest slice.
    """

    __slots__ = ("_kinds", "_newest", "_ring", "_slice_ns", "totals")

    def __init__(self, kinds: int, *, slices: int, slice_ns: int) -> None:
        self._kinds = kinds
        self._slice_ns = slice_ns
        self._ring = [[0] * kinds for _ in range(slices)]
        self._newest = 0
        self.totals = [0] * kinds
        """Per kind, as of the latest `advance` or `add`."""

    def advance(self, now_ns: int) -> None:
        """Forget what is older than the window."""
        index = now_ns // self._slice_ns
        ring, totals = self._ring, self.totals
        if index - self._newest >= len(ring):
            self.clear()
            self._newest = index
        while self._newest < index:
            self._newest += 1
            old = ring[self._newest % len(ring)]
            for kind, count in enumerate(old):
                totals[kind] -= count
                old[kind] = 0

    def add(self, now_ns: int, kind: int, count: int = 1) -> None:
        """Count `count` events of `kind`."""
        self.advance(now_ns)
        self._ring[self._newest % len(self._ring)][kind] += count
        self.totals[kind] += count

    def clear(self) -> None:
        """Forget everything."""
        for one in self._ring:
            one[:] = [0] * self._kinds
        self.totals[:] = [0] * self._kinds

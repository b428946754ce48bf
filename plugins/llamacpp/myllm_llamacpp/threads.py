"""How many threads compute: fewer while other programs use the cores.

llama.cpp's threads wait for each other many times in a step, and spin meanwhile. When one of them has to wait for a
core, all do: beside one busy program two threads on two cores were up to twenty times slower than one.
"""

from __future__ import annotations

import time

import psutil

try:
    import resource
except ImportError:  # not on Windows; then nothing is noticed and all threads are used
    resource = None  # type: ignore[assignment]

_WINDOW = 0.1
_CROWDED_SHARE = 0.9
_CROWDED_SWITCHES = 50
"""Times a second that this process had to leave a core to another one."""
_IDLE_CORES = 0.8
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


class Crowding:
    """Decides on the number of threads by what computing took; knows no clock, so that it can be tested.

    The cores are crowded when the threads got clearly less time than they wanted and were pushed off their cores; a
    thread that sleeps or waits for a GPU isn't pushed. Then it goes down to what was really got. It goes up again by
    one when a core is idle, after a pause that doubles each time that this proves wrong.
    """

    def __init__(self, most: int) -> None:
        """Begin with ``most`` threads."""
        self.count = self._most = most
        self._pause = _FIRST_PAUSE
        self._quiet = 0.0

    def measured(self, wall: float, cpu: float, switches: int, idle: float) -> int:
        """Take ``wall`` seconds in; ``cpu`` seconds were computed, ``idle`` core seconds were left by everybody."""
        crowded = cpu < _CROWDED_SHARE * self.count * wall and switches > _CROWDED_SWITCHES * wall
        if crowded and self.count > 1:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE) if self._quiet < self._pause else _FIRST_PAUSE
            self.count = max(1, min(self.count - 1, round(cpu / wall)))
            self._quiet = 0.0
            return self.count
        self._quiet = 0.0 if crowded else self._quiet + wall
        if self.count < self._most and self._quiet >= self._pause and idle > _IDLE_CORES * wall:
            self.count += 1
            self._quiet = 0.0
        return self.count


class Threads:
    """Watches what the process gets of the cores, about ten times a second of computing."""

    def __init__(self, most: int, fixed: bool) -> None:
        """Begin with ``most`` threads, and stay there when they are ``fixed``."""
        self.crowding = Crowding(most)
        self._watching = not fixed and most > 1 and resource is not None
        self._wall = 0.0
        self._cpu = 0.0
        self._began = self._cpu_before = 0.0
        self._switches, self._idle, self._since = self._counters()

    def begin(self) -> None:
        """Computing begins."""
        if self._watching:
            self._began, self._cpu_before = time.perf_counter(), time.process_time()

    def end(self) -> int | None:
        """Computing ended; the new number of threads, if it is another one now."""
        if not self._watching:
            return None
        self._wall += time.perf_counter() - self._began
        self._cpu += time.process_time() - self._cpu_before
        if self._wall < _WINDOW:
            return None
        switches, idle, now = self._counters()
        before = self.crowding.count
        idle_share = (idle - self._idle) / max(now - self._since, 1e-6)
        count = self.crowding.measured(self._wall, self._cpu, switches - self._switches, idle_share * self._wall)
        self._switches, self._idle, self._since = switches, idle, now
        self._wall = self._cpu = 0.0
        return count if count != before else None

    def _counters(self) -> tuple[int, float, float]:
        if not self._watching:
            return 0, 0.0, 0.0
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return switches, psutil.cpu_times().idle, time.perf_counter()

"""The last readouts of a slice, for streams whose lines interleave."""

from collections import deque

from inrecon.acquire.buffers import Budget, Line
from inrecon.acquire.intake import Imaging
from inrecon.acquire.pending import OpenFrame
from inrecon.acquire.place import Pose
from inrecon.frame import Key


class Window:
    """The last `size` readouts of a slice, of which a frame is `due` after every `step` of them.

    A window with fewer readouts is never due. All are of one pose: those before the slice moved are given up.
    """

    def __init__(self, *, size: int, step: int, budget: Budget) -> None:
        self._size = size
        self._step = step
        self._budget = budget
        self._held: deque[Imaging] = deque()
        self._pose: Pose | None = None
        self._since = 0

    def add(self, imaging: Imaging) -> bool:
        """Take a readout, which the oldest makes room for; gives whether the slice has moved, so that those before
        were given up. Raises `InvalidFrame` if the memory budget is spent."""
        pose = Pose.of(imaging.acquisition)
        has_moved = self._pose is not None and not pose.is_near(self._pose)
        if self._pose is None or has_moved or not self._pose.is_told:
            self._pose = pose
        while self._held and (has_moved or len(self._held) >= self._size):
            self._budget.give_back(self._held.popleft().size)
        self._budget.take(imaging.size)
        self._held.append(imaging)
        self._since += 1
        return has_moved

    @property
    def lacking(self) -> int:
        """How many readouts it lacks to be full."""
        return self._size - len(self._held)

    @property
    def due(self) -> bool:
        """Whether it is full, and `step` readouts came since the last frame."""
        return len(self._held) == self._size and self._since >= self._step

    def restart(self) -> None:
        """Count the steps from here on."""
        self._since = 0

    def frame(self) -> tuple[Key, OpenFrame]:
        """The newest readout of each line, under the counters and the header of the newest of all.

        Raises `InvalidFrame` if the memory budget is spent.
        """
        self.restart()
        lines: dict[Line, Imaging] = {imaging.line: imaging for imaging in self._held}
        newest = self._held[-1]
        frame = OpenFrame(newest.encoding, budget=self._budget, follows=0)
        try:
            for line, imaging in lines.items():
                frame.add(imaging.acquisition, line, imaging.placed)
        except BaseException:
            frame.lines.release()
            raise
        # The images of a stream are told apart, and ordered, by counters and times that go on with each of them.
        frame.reference = bytes(newest.acquisition.getHead())
        return newest.key, frame

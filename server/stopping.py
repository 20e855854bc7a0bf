"""What SIGTERM and Ctrl-C ask of a worker, by how often: to stop, to stop at once, and then what they ask of anyone.

As with other servers of long work (Celery, uvicorn), the first lets it finish what it can in its time. The second is
for who cannot wait: what is under way is cancelled and handed back, so that another worker goes on with it at once.
From the third on the process ends as it stands, and its runs wait until their leases end.
"""

import asyncio
import signal
from collections.abc import Callable

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """The signals of this process, from now on; make it in the loop that serves."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` is given what to say to whoever asked."""
        self.asked = asyncio.Event()
        self._tell = tell
        self._hand_back: Callable[[], None] = lambda: None  # before there is a worker there is nothing to hand back
        self._loop = asyncio.get_running_loop()
        for signum in _SIGNALS:
            self._loop.add_signal_handler(signum, self._hear)

    def then(self, hand_back: Callable[[], None]) -> None:
        """What the second asks for."""
        self._hand_back = hand_back

    def _hear(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
            self._tell("stopping: runs go on to their next boundary; once more, and they are handed back at once")
            return
        for signum in _SIGNALS:
            self._loop.remove_signal_handler(signum)
            signal.signal(signum, signal.SIG_DFL)
        self._tell("handing back what is under way; once more ends this process as it stands")
        self._hand_back()

"""What `mq listen` waits with."""

import random
import signal
import threading
import time

from messaging.mq.listener import Ended, Listener


def test_a_signal_at_the_end_of_a_wait_does_not_make_it_endless() -> None:
    listener, here = Listener("test"), threading.get_ident()
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    rescue = threading.Timer(20, listener._arrived.put, [Ended("it waited for ever", None)])
    rescue.start()

    def interrupt(after: float) -> None:
        time.sleep(after)
        signal.pthread_kill(here, signal.SIGUSR1)

    try:
        for _ in range(500):
            thread = threading.Thread(target=interrupt, args=[0.002 + random.uniform(-0.0002, 0.0001)])
            thread.start()
            assert listener.next(0.002) is None
            thread.join()
    finally:
        rescue.cancel()
        signal.signal(signal.SIGUSR1, previous)

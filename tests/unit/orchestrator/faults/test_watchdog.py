"""The watchdog: quiet while things move, a Fault where they stand still, a way out where not even that is heard."""

import signal
import threading
import time
from pathlib import Path

import pytest

from quadriga.data.errors import Fault
from quadriga.orchestrator.faults.watchdog import Watchdog, dump_stacks


def test_it_says_nothing_while_something_moves() -> None:
    dumps: list[int] = []
    with Watchdog(0.3, lambda: dumps.append(1), lambda reason: None).watching() as dog:
        for _ in range(10):
            time.sleep(0.1)
            dog.moved("update")
    assert dumps == []


def test_it_interrupts_a_wait_after_everybody_wrote_their_stacks() -> None:
    dumps: list[int] = []
    dog = Watchdog(0.2, lambda: dumps.append(1), lambda reason: None)
    began = time.monotonic()
    with pytest.raises(Fault, match="generate: no answer, optimizer step or checkpoint was finished"), dog.watching():
        dog.moved("generate")
        time.sleep(30)
    assert time.monotonic() - began < 5 and dumps == [1]


def test_it_gives_up_on_a_main_thread_that_takes_no_signal() -> None:
    gone, said = threading.Event(), list[str]()

    def give_up(reason: str) -> None:
        said.append(reason)
        gone.set()

    dog = Watchdog(0.1, lambda: None, give_up, patience=0.2)
    with dog.watching():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        assert gone.wait(10)
        signal.sigtimedwait([signal.SIGALRM], 1)  # the one that was sent and is pending
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    assert said == [str(dog.fault)]


def test_stacks_name_where_every_thread_is(tmp_path: Path) -> None:
    def waiting_for_a_friend() -> None:
        over.wait()

    over, file = threading.Event(), tmp_path / "stacks.txt"
    thread = threading.Thread(target=waiting_for_a_friend)
    thread.start()
    dump_stacks(file, [])
    over.set()
    thread.join()
    assert "waiting_for_a_friend" in file.read_text() and "dump_stacks" in file.read_text()

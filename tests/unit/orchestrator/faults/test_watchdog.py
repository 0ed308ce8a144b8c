"""The watchdog: silent during progress, a Fault without it, and a last resort if the main thread hangs."""

import signal
import threading
import time
from pathlib import Path

import pytest

from quadriga.data.errors import Fault
from quadriga.orchestrator.faults.watchdog import Watchdog, dump_stacks


def test_it_is_silent_during_progress() -> None:
    dumps: list[int] = []
    with Watchdog(0.3, lambda: dumps.append(1), lambda reason: None).watching() as dog:
        for _ in range(10):
            time.sleep(0.1)
            dog.moved("update")
    assert dumps == []


def test_it_dumps_stacks_and_interrupts_a_wait() -> None:
    dumps: list[int] = []
    dog = Watchdog(0.2, lambda: dumps.append(1), lambda reason: None)
    began = time.monotonic()
    with pytest.raises(Fault, match="generate: no answer, optimizer step or checkpoint was finished"), dog.watching():
        dog.moved("generate")
        time.sleep(30)
    assert time.monotonic() - began < 5
    assert dumps == [1]


def test_it_gives_up_on_a_main_thread_that_takes_no_signal() -> None:
    gone, reasons = threading.Event(), list[str]()

    def give_up(reason: str) -> None:
        reasons.append(reason)
        gone.set()

    dog = Watchdog(0.1, lambda: None, give_up, patience=0.2)
    with dog.watching():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        assert gone.wait(10)
        signal.sigtimedwait([signal.SIGALRM], 1)  # takes the pending signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    assert reasons == [str(dog.fault)]


def test_stacks_name_the_function_of_every_thread(tmp_path: Path) -> None:
    def wait_until_over() -> None:
        over.wait()

    over, file = threading.Event(), tmp_path / "stacks.txt"
    thread = threading.Thread(target=wait_until_over)
    thread.start()
    dump_stacks(file, [])
    over.set()
    thread.join()
    stacks = file.read_text()
    assert "wait_until_over" in stacks
    assert "dump_stacks" in stacks

import os
import signal
import sys
import time
from multiprocessing import get_context

import pytest

from util.evaluation import stopping

LINE = "interrupted; run the same command again to continue\n"


def wait(seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def signals_again():
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)


def end_of_child():
    """Fork, end the child by a signal, and exit with its code."""
    child = os.fork()
    if not child:
        wait()
        os._exit(1)
    ended = 0
    while not ended:  # a signal may come before the child can take it
        os.kill(child, signal.SIGINT)
        time.sleep(0.05)
        ended, status = os.waitpid(child, os.WNOHANG)
    sys.exit(os.waitstatus_to_exitcode(status))


def work(path, ready, within, at_the_end, environment):
    os.environ |= environment
    # What a test framework has put in their places writes elsewhere.
    sys.stderr = open(path, "w")  # noqa: SIM115
    with stopping.ends_on_signals():
        try:
            ready.set()
            within()
        finally:
            at_the_end()


@pytest.fixture
def told(tmp_path):
    """Exit code and stderr of a process that gets a signal at work."""

    def told(number, within=wait, at_the_end=bool, **environment):
        fork, path = get_context("fork"), tmp_path / "stderr"
        ready = fork.Event()
        process = fork.Process(target=work, args=(path, ready, within, at_the_end, environment))
        process.start()
        assert ready.wait(60)
        os.kill(process.pid, number)
        process.join(60)
        return process.exitcode, path.read_text()

    return told


def test_a_signal_is_one_line_and_the_code_of_shells(told, monkeypatch):
    monkeypatch.setattr(stopping, "_PATIENCE", 600)  # An orderly end waits for nothing.
    assert told(signal.SIGINT) == (130, LINE)
    assert told(signal.SIGTERM) == (143, LINE)


def test_of_several_processes_the_others_say_nothing(told):
    assert told(signal.SIGTERM, LOCAL_RANK="1") == (143, "")


def test_signals_while_it_ends_are_ignored(told):
    assert told(signal.SIGINT, at_the_end=signals_again) == (130, LINE)


def test_what_does_not_end_is_left_behind(told, monkeypatch):
    assert stopping._PATIENCE == 20  # torchrun kills after 30 seconds.
    monkeypatch.setattr(stopping, "_PATIENCE", 0.3)
    start = time.monotonic()
    assert told(signal.SIGTERM, at_the_end=wait) == (143, "")
    assert time.monotonic() - start < 40


def test_a_started_process_ends_without_a_word(told):
    assert told(signal.SIGCONT, end_of_child) == (130, "")  # a signal of no effect


def test_without_a_signal_nothing_is_left():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), stopping.ends_on_signals():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.paths import ROOT
from util.evaluation.stopping import ends_on_signals

LINE = "interrupted; run the same command again to continue\n"
WORK = """
import os, signal, sys, time
from util.evaluation import stopping

@stopping.ends_on_signals()
def work():
    try:
        print("ready", flush=True)
        {within}
    finally:
        {at_the_end}

def wait(seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)

def code_of_child():
    child = os.fork()
    if not child:
        wait()
        os._exit(1)
    ended = 0
    while not ended:  # a signal may come before the child can take it
        os.kill(child, signal.SIGINT)
        time.sleep(0.05)
        ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)

{before}
work()
"""


def told(number, within="wait()", at_the_end="pass", before="", **environment):
    """Exit code and stderr of work that gets a signal."""
    code = WORK.format(within=within, at_the_end=at_the_end, before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_and_the_code_of_shells(number, code):
    assert told(number) == (code, LINE)


def test_of_several_processes_the_first_one_says_it():
    assert told(signal.SIGTERM, LOCAL_RANK="0") == (143, LINE)
    assert told(signal.SIGTERM, LOCAL_RANK="1") == (143, "")


def test_signals_while_it_ends_are_ignored():
    again = "[os.kill(os.getpid(), n) for n in (signal.SIGINT, signal.SIGTERM)]"
    assert told(signal.SIGINT, at_the_end=again) == (130, LINE)


def test_what_does_not_end_is_left_behind():
    start = time.monotonic()
    code, stderr = told(signal.SIGTERM, at_the_end="wait(50)", before="stopping._PATIENCE = 0.3")
    assert code == 143 and not stderr and time.monotonic() - start < 40


def test_a_started_process_ends_without_a_word():
    assert told(signal.SIGCONT, "sys.exit(code_of_child())") == (130, "")  # a signal of no effect


def test_without_a_signal_nothing_is_left():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), ends_on_signals():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

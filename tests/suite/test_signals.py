"""A signal to the process that the user started reaches the ranks, and its status comes back."""

import signal
import subprocess
import sys
import threading

import pytest

from suite.cli import main
from suite.signals import (
    INTERRUPTED,
    RunInterruptedError,
    StopRequest,
    clear_mark,
    leave_mark,
    marked_step,
    passing_on,
)

CHILD = """
import signal, sys, time
from suite.signals import StopRequest
stop = StopRequest().install()
print("ready", flush=True)
while not stop.asked:
    time.sleep(0.01)
sys.exit(75 if stop.signal == {number} else 1)
"""
PARENT = """
import sys
from suite.signals import run_passing_on
sys.exit(run_passing_on([sys.executable, "-c", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_goes_through_and_the_status_comes_back(number):
    command = [sys.executable, "-c", PARENT, CHILD.format(number=int(number))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(number)
    assert parent.wait(timeout=60) == INTERRUPTED


def test_without_it_a_signal_ends_the_parent_alone():
    """The control: what `run_passing_on` is for."""
    plain = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    command = [sys.executable, "-c", plain, CHILD.format(number=15)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    child = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(parent.pid)]))
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=60) == -signal.SIGTERM
    subprocess.run(["kill", "-KILL", str(child)], check=True)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    with passing_on(seen.append):
        signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_nothing_is_changed():
    before, during = signal.getsignal(signal.SIGTERM), []

    def body():
        with passing_on(lambda number: None):
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert during == [before]


def test_a_request_is_noted_and_nothing_else():
    stop = StopRequest()
    assert not stop.asked
    stop.note(signal.SIGUSR1)
    assert stop.asked and stop.signal == signal.SIGUSR1


def test_the_mark_of_a_stop(tmp_path):
    assert marked_step(tmp_path) is None
    leave_mark(tmp_path, 41)
    assert marked_step(tmp_path) == 41
    clear_mark(tmp_path)
    clear_mark(tmp_path)
    assert marked_step(tmp_path) is None


def test_the_command_line_says_75(monkeypatch, capsys):
    from suite import sweep

    def interrupted(*arguments):
        raise RunInterruptedError("asked to stop; the same command carries on")

    monkeypatch.setattr(sweep, "sweep", interrupted)
    assert main(["sweep", "smoke"]) == INTERRUPTED
    assert "carries on" in capsys.readouterr().err

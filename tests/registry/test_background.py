from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tunedock_registry import background

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_pool_gives_way_and_its_caller_does_not() -> None:
    before = priority()
    with background.threads(1, "test") as pool:
        assert pool.submit(priority).result() == max(background.NICE, before)
    assert priority() == before


def test_who_gave_way_further_stays_there() -> None:
    def twice() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        background.give_way()
        return priority()

    with background.threads(1, "test") as pool:
        assert pool.submit(twice).result() == 15


AUTOGROUP = Path("/proc/self/autogroup")
groups_sessions = pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group sessions")

GIVES_WAY = """
import os
from pathlib import Path
from tunedock_registry.background import give_way_as_process
give_way_as_process(12)
print(os.getpriority(os.PRIO_PROCESS, 0), end=" ")
group = Path("/proc/self/autogroup")
print(group.read_text() if group.exists() else "")
"""


def what_gave_way(new_session: bool) -> tuple[int, str]:
    """The priority of a process that gave way, and what the kernel says of its session.

    The kernel says nothing of a session that it put into the group of all (`proc_sched_autogroup_show_task`).
    """
    command = [sys.executable, "-c", GIVES_WAY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=new_session)
    nice, _, session = done.stdout.partition(" ")
    return int(nice), session.strip()


def test_a_process_gives_way() -> None:
    assert what_gave_way(new_session=False)[0] == 12


@groups_sessions
def test_a_process_gives_way_with_the_session_that_it_leads() -> None:
    nice, session = what_gave_way(new_session=True)
    assert nice == 12
    assert session.endswith(" nice 12")


@groups_sessions
def test_a_session_of_others_keeps_its_share() -> None:
    before = AUTOGROUP.read_text()
    assert what_gave_way(new_session=False)[1] == before.strip()
    assert AUTOGROUP.read_text() == before

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


SAYS_ITS_PRIORITIES = """
import os
from pathlib import Path
from tunedock_registry.background import give_way_as_process
give_way_as_process(12)
group = Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text().split()[-1] if group.exists() else 12)
"""


def priorities(new_session: bool) -> list[int]:
    """Of a process that gave way, and of its session."""
    command = [sys.executable, "-c", SAYS_ITS_PRIORITIES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=new_session)
    return [int(number) for number in done.stdout.split()]


def test_a_process_gives_way_with_the_session_that_it_leads() -> None:
    assert priorities(new_session=True) == [12, 12]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group sessions")
def test_a_session_of_others_keeps_its_share() -> None:
    before = Path("/proc/self/autogroup").read_text()
    assert priorities(new_session=False)[0] == 12
    assert Path("/proc/self/autogroup").read_text() == before

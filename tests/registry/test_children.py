"""Children that work on a stranger's bytes: ended with all that they start, and nice in earnest."""

from __future__ import annotations

import os

from tunedock_registry import children


def test_a_child_leads_a_group_within_the_session_of_its_parent_so_that_its_nice_value_counts() -> None:
    child = children.start("tunedock_registry.adapters.intake_child", env=os.environ)
    try:
        assert os.getpgid(child.pid) == child.pid
        assert os.getsid(child.pid) == os.getsid(0)
    finally:
        children.end(child)
    assert child.returncode is not None

"""Which tests of the real stack stay together when two processes work side by side, and in which order."""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

LONGEST_FIRST = ("one_run", "engines", "test_conversations", "test_supervision", "test_jobs", "test_parts")
"""the others are shorter, so that neither process waits long for the other at the end"""


def cluster_of(nodeid: str) -> str:
    """Name what shares a cluster with a test of the real stack: its module, or its package beside other modules."""
    module = nodeid.partition("::")[0]
    parts = PurePath(module).parts
    return PurePath(parts[2]).stem if parts[:2] == ("tests", "e2e") else module


def rank(nodeid: str) -> int:
    """Place of a test in the order."""
    cluster = cluster_of(nodeid)
    return LONGEST_FIRST.index(cluster) if cluster in LONGEST_FIRST else len(LONGEST_FIRST)


class ByCluster(LoadScopeScheduling):
    """Scheduling that gives each process one cluster's tests after another."""

    def _split_scope(self, nodeid: str) -> str:
        return cluster_of(nodeid)

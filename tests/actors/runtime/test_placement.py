"""What does not fit is named: the bundle, what it lacks, and where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.placement import Node, Request, bundle, explain

HEAD = Node("10.0.0.1", {"CPU": 8.0}, {})
GPUS = [Node(f"10.0.1.{n}", {"CPU": 16.0, "GPU": 4.0}, {"lpo-ray/role": "rollout"}) for n in (1, 2)]


def test_what_fits_has_no_reason() -> None:
    learner = Request("learner", [bundle(1, 1)] * 4, "PACK")
    rollout = Request("rollout", [bundle(2, 2)] * 2, "SPREAD", {"lpo-ray/role": "rollout"})
    assert explain([learner, rollout, Request("verifier", [bundle(1, 0)], "PACK")], [HEAD, *GPUS]) is None
    assert explain([Request("learner", [bundle(1, 0.5)] * 16, "PACK")], GPUS) is None


def test_the_bundle_that_lacks_something_is_named_with_what_each_node_has_left() -> None:
    learner = Request("learner", [bundle(1, 1)] * 6, "PACK")
    rollout = Request("rollout", [bundle(1, 2)] * 2, "SPREAD")
    assert explain([learner, rollout], [HEAD, *GPUS]) == (
        "rollout asks for 2 x (1 CPU, 2 GPU); bundle 1 fits on no node: 10.0.0.1 has 0 of 2 GPU left; "
        "10.0.1.1 has 0 of 2 GPU left; 10.0.1.2 has 0 of 2 GPU left"
    )


def test_eight_gpus_on_two_nodes_are_no_place_for_one_engine_of_eight() -> None:
    why = explain([Request("rollout", [bundle(1, 8)], "SPREAD")], GPUS)
    assert why is not None
    assert why.endswith("bundle 0 fits on no node: 10.0.1.1 has 4 of 8 GPU left; 10.0.1.2 has 4 of 8 GPU left")


def test_labels_that_no_node_has_and_a_cluster_without_nodes() -> None:
    asked = Request("verifier", [bundle(1, 0)], "PACK", {"pool": "cpu"})
    assert explain([asked], GPUS) == (
        "verifier asks for 1 x (1 CPU) on nodes with pool=cpu; bundle 0 fits on no node: none of 2 nodes has pool=cpu"
    )
    assert str(explain([asked], [])).endswith("the cluster has no nodes")


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.lists(st.integers(1, 4), max_size=8))
def test_it_never_gives_out_more_than_there_is(nodes: list[int], wanted: list[int]) -> None:
    machines = [Node(str(n), {"CPU": float(cpus)}, {}) for n, cpus in enumerate(nodes)]
    requests = [Request("rollout", [bundle(cpus, 0)], "SPREAD") for cpus in wanted]
    if explain(requests, machines) is None:
        assert sum(wanted) <= sum(nodes)
    elif sum(wanted) + 3 * len(nodes) <= sum(nodes):  # fragments of less than 4 in each node
        raise AssertionError("it fits, whatever the order")

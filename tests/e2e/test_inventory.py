"""The nodes of a live cluster, as ``lpo-ray plan --address`` sees them."""

from __future__ import annotations

import pytest

from lpo_ray.errors import ConfigError
from lpo_ray.tools.plan.devices import DEVICES

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.e2e]


def test_nodes_of_a_live_cluster() -> None:
    import ray

    from actors.runtime.machines import machines

    resources = {"accelerator_type:H100": 1.0}
    ray.init(address="local", num_cpus=3, num_gpus=4, resources=resources, include_dashboard=False, log_to_driver=False)
    try:
        (found,) = machines()
    finally:
        ray.shutdown()
    assert (found.cpus, found.gpus, found.device) == (3, 4, DEVICES["H100"])
    assert 0.1 < found.memory_gib < 10_000


def test_no_cluster_at_the_address() -> None:
    from actors.runtime.machines import nodes_at

    with pytest.raises(ConfigError, match=r"--address is 127\.0\.0\.1:1, where nobody answers"):
        nodes_at("127.0.0.1:1")

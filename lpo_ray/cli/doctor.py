"""``lpo-ray doctor``."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from lpo_ray.errors import ChecksFailed
from lpo_ray.tasks.base_policy import default_cache_dir
from lpo_ray.tools import doctor


def doctor_command(address: str | None, *, as_json: bool, quick: bool) -> None:
    """Print what was found on this machine, or on every node of the cluster at ``address``; ChecksFailed names what
    fails.
    """
    surroundings = doctor.Surroundings(Path("runs").absolute(), default_cache_dir(), Path(tempfile.gettempdir()))
    if address is None:
        groups = {socket.gethostname(): doctor.examine(doctor.CHECKS, surroundings, quick=quick)}
    else:
        from actors.doctor.nodes import examine_cluster

        groups = examine_cluster(address, surroundings, quick=quick)
    if as_json:
        sys.stdout.write(json.dumps(doctor.as_json(groups), indent=2) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else doctor.WIDTH).print(doctor.render(groups))
    if failed := doctor.failures(groups):
        raise ChecksFailed(failed)

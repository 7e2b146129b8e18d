"""``lpo-ray doctor``."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from rich.console import Console

from lpo_ray.common.home import default_cache_dir
from lpo_ray.errors import ChecksFailed, ConfigError
from lpo_ray.run.ray_needs import temp_dir
from lpo_ray.tools import doctor


def doctor_command(address: str | None, *, as_json: bool, quick: bool) -> None:
    """Print what was found on this machine, or on every node of the cluster at ``address``; ChecksFailed names what
    fails.
    """
    surroundings = doctor.Surroundings(Path("runs").absolute(), default_cache_dir(), temp_dir())
    if address is None:
        groups = {socket.gethostname(): doctor.examine(doctor.CHECKS, surroundings, quick=quick)}
    else:
        try:
            from actors.doctor.nodes import examine_cluster
        except ImportError as error:
            raise ConfigError(
                f"--address asks the cluster's Ray, and this machine's cannot be imported ({error}); expected a stack "
                "that passes lpo-ray doctor without --address"
            ) from error

        groups = examine_cluster(address, surroundings, quick=quick)
    if as_json:
        sys.stdout.write(json.dumps(doctor.as_json(groups), indent=2) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else doctor.WIDTH).print(doctor.render(groups))
    if failed := doctor.failures(groups):
        raise ChecksFailed(failed)

"""The owner of the top-level package ``actors``: the name is a generic one, and the first on the path wins."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

import lpo_ray
from lpo_ray.tools.doctor.findings import Finding, State, Surroundings, judge
from lpo_ray.tools.doctor.versions import DISTRIBUTION

PACKAGE = "actors"


def check_owner(_: Surroundings) -> list[Finding]:
    """Check which package ``actors`` is imported."""
    spec = importlib.util.find_spec(PACKAGE)
    locations = list(spec.submodule_search_locations or [str(spec.origin)]) if spec else []
    owners = importlib.metadata.packages_distributions().get(PACKAGE, [])
    return [owner(owners, locations, str(Path(lpo_ray.__path__[0]).parent / PACKAGE))]


def owner(owners: Sequence[str], locations: Sequence[str], ours: str) -> Finding:
    """Judge who owns the package. ``owners``: distributions that have installed the package; ``locations``: where an
    import of it would look, the first wins; ``ours``: where it must be.
    """
    name, expected = f"package {PACKAGE}", f"{DISTRIBUTION} alone, in {ours}"
    foreign = sorted({each for each in owners if canonicalize_name(each) != DISTRIBUTION})
    if foreign:
        advice = f"pip uninstall {' '.join(foreign)}, then reinstall {DISTRIBUTION}; or use two environments"
        return Finding(name, State.fail, f"also installed by {', '.join(foreign)}", expected, advice)
    if not locations:
        return Finding(name, State.fail, "it cannot be imported", expected, f"reinstall {DISTRIBUTION}")
    at = Path(locations[0]).resolve()
    problem = None if at == Path(ours).resolve() else State.fail
    advice = f"another folder named {PACKAGE} comes first on sys.path: start elsewhere, or take it off PYTHONPATH"
    return judge(name, problem, str(at), expected, advice)

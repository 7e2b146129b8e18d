"""One picture of several studies that begin with the same arm: what each other arm gives in pass@1 and in pass@k.

PYTHONPATH=. .venv/bin/python tests/benchmarks/frontier.py configs/results/frontier.png adaptive temperature annealing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from lpo_ray.tools.compare.bootstrap import Interval
from lpo_ray.tools.compare.findings import WHEN
from lpo_ray.tools.compare.pictures import Trade, draw_trades

RESULTS = Path(__file__).parent.parent.parent / "configs" / "results"
LONGEST = 40
"""characters of a label"""


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--k", type=int, default=16)
    asked = parser.parse_args()
    panels = {when: list(trades(asked.studies, when, asked.k)) for when in WHEN.values()}
    figure = draw_trades(panels, "forward_kl, group_std", (1, asked.k))
    figure.set_dpi(110)
    FigureCanvasAgg(figure).print_png(asked.out, metadata={"Software": None})


def trades(studies: Sequence[str], when: str, k: int) -> Iterator[Trade]:
    """Of each arm; controls of the first study only: GRPO at adaptive tau is far off the page."""
    for number, name in enumerate(studies):
        for arm in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["to_first"]:
            if number == 0 or not arm["arm"].startswith("first_order"):
                label = arm["arm"]
                label = f"{label[:LONGEST]}..." if len(label) > LONGEST else label
                yield Trade(label, *(Interval(**arm["by"][f"pass@{of} {when}"]) for of in (1, k)))


if __name__ == "__main__":
    main()

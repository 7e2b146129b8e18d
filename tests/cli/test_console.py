"""What a command shows while it works."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from lpo_ray.cli.console import _print_part, model_of
from lpo_ray.config import load_config
from lpo_ray.run.spec import make_spec

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_a_warm_start_is_a_line_for_each_tenth_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    for step in range(1, 221):
        _print_part(console, step, 220, 1.5)
    lines = out.getvalue().splitlines()
    assert lines[0] == "warm start of the base policy: step 1/220, loss 1.500"
    assert [int(line.split()[7].split("/")[0]) for line in lines[1:]] == [22 * part for part in range(1, 11)]


def test_the_lines_come_while_the_policy_is_built_and_not_again(tmp_path: Path) -> None:
    warmup = f"model.warmup={{steps: 2, batch_size: 2, cache_dir: {tmp_path}/cache}}"
    spec = make_spec(load_config(QUICKSTART, [f"run.dir={tmp_path}", warmup]))
    out = io.StringIO()
    path = model_of(spec, Console(file=out, width=400))
    said = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in said[:-1]] == [
        f"warm start of the base policy: step {step}/2" for step in (1, 2)
    ]
    assert said[-1].startswith(f"base policy: {path}  (")
    again = io.StringIO()
    assert model_of(spec, Console(file=again)) == path
    assert "warm start" not in again.getvalue()

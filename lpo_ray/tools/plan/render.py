"""A forecast for a terminal: the whole of one cluster, or a row for each of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lpo_ray.run.numbers import numbers
from lpo_ray.run.resolved import render_resolved, resolved
from lpo_ray.tools.plan.forecast import Forecast
from lpo_ray.tools.plan.memory import GIB

COMPUTED = "computed, not measured"


def render_forecast(forecast: Forecast) -> RenderableType:
    """Render everything about one cluster."""
    model, work, kv, time = forecast.model, forecast.work, forecast.kv, forecast.time
    parts: list[RenderableType] = [
        Text(f"{model.name}: {model.parameters:,} parameters (from {model.source})", style="bold"),
        *([Text(f"an adapter of {work.adapter:,} parameters is trained")] if work.adapter else []),
        Text(f"on {describe_cluster(forecast)}; {COMPUTED}, unless a line says so"),
        _numbers({name: str(value) for name, value in numbers(forecast.spec).items()}, "derived"),
        Text("decided by device, data and cluster", style="bold"),
        Text("\n".join(f"  {line}" for line in render_resolved(resolved(forecast.spec)).splitlines())),
        _memory(forecast.rank.device, "memory of a learner rank", forecast),
    ]
    if forecast.rank.host:
        parts.append(_memory(forecast.rank.host, "in the host's memory for each rank", None))
    parts.append(
        Text(f"A checkpoint takes {forecast.rank.save / GIB:.2f} GiB more of the host's memory, for one of the ranks")
    )
    parts += [
        _memory(forecast.engine.device, "memory of an engine's device, without its KV cache", None),
        _numbers(
            {
                "bytes of a token": f"{kv.bytes_per_token:,}",
                "room (GiB)": f"{kv.num_bytes / GIB:.2f}",
                "room (tokens)": f"{kv.tokens:,}",
                "responses at sampling.max_tokens": f"{forecast.responses_at_most_length:,}",
                "responses at the expected length": f"{forecast.responses_expected:,}",
                "rollout.max_num_seqs": f"{forecast.spec.config.rollout.max_num_seqs:,}",
            },
            "KV cache of an engine",
        ),
        _numbers(
            {
                "prompt, response (tokens)": f"{forecast.lengths.prompt:.1f}, {forecast.lengths.response:.1f}",
                **_turns(forecast),
                "": forecast.lengths.source,
                "response tokens": f"{work.sampled:,.0f}",
                "positions in the learner": f"{work.positions:,.0f}",
                "weight bytes to publish": f"{work.weight_bytes:,}",
            },
            "a step",
        ),
    ]
    if forecast.rates is not None and time is not None:
        sample, train, publish = forecast.rates.sample, forecast.rates.train, forecast.rates.publish
        parts.append(
            _numbers(
                {
                    "sampling": f"{time.sample:.2f} s at {sample.value:,.0f} tokens/s an engine, {sample.source}",
                    "learning": f"{time.train:.2f} s at {train.value:,.0f} tokens/s a rank, {train.source}",
                    "publishing": f"{time.publish:.2f} s at {publish.value:.2f} GB/s, {publish.source}",
                    "step": f"{time.step:.2f} s",
                    "run, without evaluation": f"{time.step * forecast.spec.config.run.steps / 3600:.2f} h",
                    "the slower lane": time.lane,
                    "advice": time.advice or "no lane waits for more than a quarter of its time",
                },
                "time of a step",
            )
        )
    if forecast.limits:
        fixed = {
            x.setting: f"{x.seconds:,.0f} s for {x.piece}, which takes {x.forecast:,.2f} s" for x in forecast.limits
        }
        parts.append(_numbers(fixed, "limits that are fixed leave"))
    parts += [Text(f"Note: {note}") for note in forecast.notes]
    if not forecast.problems:
        parts.append(Text("fits", style="green"))
    return Group(*parts)


def render_rows(forecasts: Sequence[tuple[str, Forecast]]) -> RenderableType:
    """Render a row for each cluster, by the name that it was given."""
    first = forecasts[0][1]
    title = (
        f"{first.spec.config.run.name}: {first.model.name}, {first.model.parameters / 1e9:.2f} B parameters; {COMPUTED}"
    )
    table = Table(box=box.MARKDOWN)
    for column in COLUMNS:
        left = column in ("cluster", "fits", "slower lane")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for name, forecast in forecasts:
        table.add_row(*row(name, forecast))
    return Group(Text(title), table)


COLUMNS = (
    "cluster", "fits", "GiB a rank", "GiB of engine weights", "KV tokens", "responses at once, longest / expected",
    "s a step", "sampling + learning + publishing", "slower lane",
)  # fmt: skip


def row(name: str, forecast: Forecast) -> tuple[str, ...]:
    """Cells of COLUMNS."""
    time, kv = forecast.time, forecast.kv
    parts = "-" if time is None else f"{time.sample:.0f} + {time.train:.0f} + {time.publish:.1f}"
    return (
        name,
        "no" if forecast.problems else "yes",
        f"{forecast.rank.total / GIB:.1f}",
        f"{forecast.engine.device['weights'] / GIB:.1f}",
        f"{kv.tokens:,}",
        f"{forecast.responses_at_most_length:,} / {forecast.responses_expected:,}",
        "-" if time is None else f"{time.step:.0f}",
        parts,
        "-" if time is None else time.lane,
    )


def describe_cluster(forecast: Forecast) -> str:
    """Machines in words."""
    words = []
    for machine in forecast.machines:
        device = machine.device.name if machine.device else "unknown GPUs"
        words.append(f"{machine.name}: {machine.gpus} x {device}" if machine.gpus else f"{machine.name}: CPU")
    return ", ".join(words)


def _turns(forecast: Forecast) -> dict[str, str]:
    lengths = forecast.lengths
    if not forecast.spec.has_turns:
        return {}
    return {
        "turns": f"{lengths.turns:.1f}",
        "environment (tokens, seconds behind a turn)": f"{lengths.said:.1f}, {lengths.environment_seconds:g}",
    }


def _numbers(numbers: Mapping[str, str], title: str) -> Text:
    width = max(len(name) for name in numbers)
    return Text("\n").join([Text(title, style="bold"), *(Text(f"  {k:<{width}}  {v}") for k, v in numbers.items())])


def _memory(items: Mapping[str, int], title: str, forecast: Forecast | None) -> Text:
    total = sum(items.values()) / GIB
    device = forecast.device if forecast is not None else None
    of = f" of {device.memory_gib:g}" if device is not None and forecast is not None and device.memory_gib < 1e6 else ""
    return _numbers(
        {**{name: f"{size / GIB:8.3f} GiB" for name, size in items.items()}, "together": f"{total:8.3f} GiB{of}"}, title
    )

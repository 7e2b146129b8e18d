"""The recorder beside the loop: what takes long is done in a thread, in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lpo_ray.common.files import DiskFull
from lpo_ray.config import load_config
from lpo_ray.learner.packing import Packing, pack_step
from lpo_ray.records import TargetGroup
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.settings import recorder_settings
from lpo_ray.run.spec import outline
from tests.support.builders import make_target
from tests.support.telemetry import report_of

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


class Decoder:
    """Decodes when it is told to."""

    def __init__(self) -> None:
        self.may, self.threads = threading.Event(), set[int]()

    def decode(self, token_ids: Sequence[int]) -> str:
        self.threads.add(threading.get_ident())
        assert self.may.wait(10), "the loop did not go on while samples were decoded"
        return str(token_ids)


def recorder_in(folder: Path, decoder: Decoder, *overrides: str) -> Recorder:
    config = load_config(
        QUICKSTART, [f"run.dir={folder}", "run.name=r", "model.path=m", "telemetry.tensorboard=false", *overrides]
    )
    (folder / "r").mkdir()
    return Recorder(recorder_settings(outline(config, 64), "m"), Console(quiet=True), decoder)  # pyright: ignore


async def learned(recorder: Recorder, step: int, targets: list[TargetGroup]) -> None:
    batch = pack_step(targets, Packing(1, 10**6, False), step=step, seed=0, updates=2, learning_rate=0.1)
    await recorder.learned(batch, targets, report_of(targets), {})


async def test_samples_are_decoded_and_encoded_apart_from_the_loop_and_in_order(tmp_path: Path) -> None:
    decoder = Decoder()
    recorder = recorder_in(tmp_path, decoder)
    first, again = ([make_target(n, (3, 5, 2), version=version) for n in range(4)] for version in (0, 7))
    writing = asyncio.ensure_future(learned(recorder, 0, first))
    await asyncio.sleep(0.05)
    writing.cancel()  # the learner was lost behind it: the step is computed again, and its samples are written again
    second = asyncio.ensure_future(learned(recorder, 0, again))
    await asyncio.sleep(0)
    decoder.may.set()
    await asyncio.wait_for(second, 10)
    assert threading.get_ident() not in decoder.threads
    assert len(decoder.threads) == 1
    [path] = (tmp_path / "r" / "samples").iterdir()
    assert {version for row in pq.read_table(path)["versions"].to_pylist() for version in row} == {7}
    recorder.close({}, 1.0)


async def test_samples_are_written_when_they_are_due_or_when_an_update_was_skipped(tmp_path: Path) -> None:
    decoder = Decoder()
    decoder.may.set()
    recorder = recorder_in(tmp_path, decoder, "telemetry.samples_every=2")
    targets = [make_target(n, (3, 5, 2)) for n in range(4)]
    whole = report_of(targets)
    good = type(whole)(tuple(update for update in whole.updates if update.norms.applied))
    batch = pack_step(targets, Packing(1, 10**6, False), step=0, seed=0, updates=2, learning_rate=0.1)
    await recorder.learned(batch, targets, good, {})
    assert not (tmp_path / "r" / "samples").exists()
    await recorder.learned(batch, targets, whole, {})
    await learned(recorder, 1, targets)
    found = sorted(path.name for path in (tmp_path / "r" / "samples").iterdir())
    assert found == ["step_000001.parquet", "step_000002.parquet"]
    recorder.close({}, 1.0)


async def test_a_full_disk_is_told_to_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    decoder.may.set()
    recorder = recorder_in(tmp_path, decoder)

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lpo_ray.telemetry.samples.pq.ParquetWriter", full)
    with pytest.raises(DiskFull, match=r"step_000001\.parquet"):
        await learned(recorder, 0, [make_target(n, (3, 5, 2)) for n in range(4)])
    assert list((tmp_path / "r" / "samples").iterdir()) == []
    recorder.close({}, 1.0)

"""Runs as jobs of a Ray cluster, over the head's job server. A machine only needs to reach it, and the token.

A query to a run (where it is, what it waits for, another number of workers) is sent by a short job of its own, beside
the run's control actor: the job server is the only door, and it asks everybody for the token.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from actors.control.queries import ANSWER
from lpo_ray.errors import ComponentFailed, ConfigError, DeadlineExceeded, LpoRayError, RunBusy

RUN_KEY = "lpo_ray_run"
CONFIG_FILE = "lpo-ray-submitted.yaml"
STOP_SECONDS = 21_600
"""for a run to end its update and write its checkpoint, before Ray kills it: far beyond both. A run that hangs is
ended by the limits on its components' silence.
"""
QUERY_SECONDS = 90.0
"""for the job that answers a query"""
MAX_MIB = 256
"""size limit of a submitted folder"""
LEFT_OUT = (".git", ".venv", "venv", "__pycache__", "runs", "checkpoints", "node_modules", ".mypy_cache",
            ".pytest_cache", ".ruff_cache", ".env", "*.pyc", "*.token", "auth_token", "*.safetensors", "*.gguf",
            "*.ckpt")  # fmt: skip
"""patterns of the working folder that are not submitted: what is large, made here, or secret"""
ALIVE = (JobStatus.PENDING, JobStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class RunJob:
    """A run as the job server knows it."""

    run: str
    job_id: str
    state: str
    """state of Ray's job: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED"""
    since: float
    """when it was submitted, in unix seconds"""
    message: str


class Jobs:
    """The job server of one cluster. Every method raises ConfigError, in one line, when it cannot be reached or
    refuses.
    """

    def __init__(self, address: str) -> None:
        """``address``: URL of the job server, such as http://HEAD:8265."""
        self._address = address
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"--address is {address!r}; expected that of the head's job server, such as http://HEAD:8265"
            )
        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of packages and tokens; what matters is an error
        with self._explained():
            self._client = JobSubmissionClient(address)

    def submit(self, config: str, run: str, working_dir: Path | None, exclude: Sequence[str]) -> str:
        """Start the run of a resolved configuration (YAML); returns the job's id. ``working_dir``: a folder that goes
        along, with the user's verifiers and data. Raises RunBusy while a run of this name is active.
        """
        job = next((job for job in self.runs() if job.run == run and job.state in ALIVE), None)
        if job is not None:
            raise RunBusy(
                f"run {run} is active as job {job.job_id} ({job.state}) since {time.time() - job.since:.0f} s; "
                "expected a name that is free: take another run.name, or stop it with lpo-ray stop"
            )
        job_id = f"{run}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
        with staged(config, working_dir, exclude) as folder, self._explained():
            return self._client.submit_job(
                entrypoint=f"exec python -m lpo_ray train {CONFIG_FILE}",
                submission_id=job_id,
                runtime_env={"working_dir": str(folder), "env_vars": environment},
                metadata={RUN_KEY: run},
            )

    def runs(self) -> list[RunJob]:
        """List all runs that the cluster knows, the newest first."""
        with self._explained():
            found = [self._run_job(job) for job in self._client.list_jobs() if RUN_KEY in (job.metadata or {})]
        return sorted(found, key=lambda job: job.since, reverse=True)

    def find(self, run: str) -> RunJob:
        """Find the newest job of ``run``. Raises ConfigError when there is none."""
        runs = self.runs()
        found = next((job for job in runs if job.run == run), None)
        if found is None:
            known = ", ".join(dict.fromkeys(job.run for job in runs)) or "(there is none)"
            raise ConfigError(f"no run named {run} was submitted to {self._address}; expected one of {known}")
        return found

    def logs(self, job_id: str) -> str:
        """Return all that the job has printed so far."""
        with self._explained():
            return self._client.get_job_logs(job_id)

    async def follow(self, job_id: str) -> AsyncIterator[str]:
        """Yield what the job prints, until it ends."""
        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"the stream from {self._address} broke: {error}; the run continues: follow it again"
            ) from None

    def state(self, job_id: str) -> RunJob:
        """Look up a job as it is now."""
        with self._explained():
            return self._run_job(self._client.get_job_info(job_id))

    def stop(self, job_id: str) -> None:
        """Ask the job to end, as SIGTERM does: it ends its update and writes a checkpoint. Returns at once."""
        with self._explained():
            self._client.stop_job(job_id)

    def wait(self, job_id: str, seconds: float) -> RunJob:
        """Wait until the job has ended, and return it. Raises DeadlineExceeded."""
        until = time.monotonic() + seconds
        while (job := self.state(job_id)).state in ALIVE:
            if time.monotonic() > until:
                raise DeadlineExceeded(f"job {job_id}", "end", seconds)
            time.sleep(0.5)
        return job

    def ask(self, run: str, query: Mapping[str, object]) -> dict[str, object]:
        """Send a query (see ``actors.control.queries``) to an active run; returns its answer."""
        job = self.find(run)
        if job.state not in ALIVE:
            raise ConfigError(
                f"run {run} has ended ({job.state}, job {job.job_id}): {job.message or 'no message'}. Expected one "
                f"that is active; what it left is in its folder, what it said in `lpo-ray logs {run}`"
            )
        text = shlex.quote(json.dumps({"run": run, **query}))
        with self._explained():
            runtime_env = self._client.get_job_info(job.job_id).runtime_env or {}
            kept = {key: runtime_env[key] for key in ("working_dir",) if key in runtime_env}
            asked = self._client.submit_job(
                entrypoint=f"exec python -m actors.control.queries {text}", runtime_env=kept
            )
        try:
            self.wait(asked, QUERY_SECONDS)
            output = self.logs(asked)
        finally:
            with contextlib.suppress(LpoRayError), self._explained():
                self._client.delete_job(asked)
        line = next((line for line in output.splitlines() if line.startswith(ANSWER)), None)
        if line is None:
            raise ComponentFailed(
                f"the cluster at {self._address}", f"ask {run}", output.strip()[-2000:] or "no output"
            )
        answer = json.loads(line.removeprefix(ANSWER))
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def _run_job(self, job: JobDetails) -> RunJob:
        metadata = job.metadata or {}
        run = metadata.get(RUN_KEY, "")
        return RunJob(run, job.submission_id or "", job.status, (job.start_time or 0) / 1000, job.message or "")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the client into ours."""
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(
                f"{self._address} refused the token: {str(error).splitlines()[0]} Expected the cluster's own: put it "
                "into ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to its file, with RAY_AUTH_MODE=token"
            ) from error
        except (ConnectionError, requests.exceptions.RequestException, OSError) as error:
            raise ConfigError(
                f"{self._address} cannot be reached: {str(error).splitlines()[0][:300]}. Expected the address of the "
                "head's job server (`ray start --head --dashboard-host`): check host, port and firewall"
            ) from error
        except RuntimeError as error:
            raise ConfigError(f"{self._address} refused: {_last_line(str(error))}") from error


@contextlib.contextmanager
def staged(config: str, working_dir: Path | None, exclude: Sequence[str]) -> Iterator[Path]:
    """Make a folder with the configuration and the content of ``working_dir``, by hard links where that is possible."""
    with tempfile.TemporaryDirectory(prefix="lpo-ray-submit-") as name:
        folder = Path(name) / "job"
        if working_dir is None:
            folder.mkdir()
        elif not working_dir.is_dir():
            raise ConfigError(f"--working-dir is {working_dir}, which is not a folder")
        else:
            left_out = shutil.ignore_patterns(*LEFT_OUT, *exclude)
            shutil.copytree(working_dir, folder, copy_function=_link, ignore=left_out)
        _check_size(folder, working_dir)
        (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
        yield folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _check_size(folder: Path, working_dir: Path | None) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values()) / 2**20
    if total > MAX_MIB:
        largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:3]
        named = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise ConfigError(
            f"--working-dir {working_dir} has {total:.0f} MiB, the largest: {named}; expected at most {MAX_MIB} MiB, "
            "since every node gets a copy: leave them out with --exclude PATTERN, and give data by paths that "
            "all nodes see"
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"

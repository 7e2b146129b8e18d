"""What SECURITY.md promises: no code out of models and checkpoints, no secret in what a run writes or says."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from actors.runtime.rendezvous import join_store, listen, open_store
from actors.transports.cuda_ipc import from_plain, to_plain
from lpo_ray.common.files import write_json
from lpo_ray.common.redaction import redact, secret_in
from lpo_ray.config import load_config
from lpo_ray.errors import CheckpointDamaged, ConfigError, DataError
from lpo_ray.policy.loading import context_length, load_policy
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.inprocess import build_inprocess
from lpo_ray.run.settings import learner_settings
from lpo_ray.run.spec import make_spec
from lpo_ray.tasks.sources.rows import open_rows
from lpo_ray.training.checkpoint import _digests
from tests.support.pickles import Evil

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SECRETS = {
    "RAY_AUTH_TOKEN": "ray-5e1f0c7a9b3d",
    "WANDB_API_KEY": "wandb-77b2d94e11ac",
    "HF_TOKEN": "hf_QqWwEeRrTtYy",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-pass-phrase",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+access=key",
}


def train(*overrides: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lpo_ray", "train", str(QUICKSTART), "cluster.kind=inprocess", *overrides]
    return subprocess.run(
        command, input=answer, capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


# Code of a model


@pytest.fixture
def foreign(tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny policy as a model that transformers does not know, with code that leaves ``ran`` in its folder."""
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_policy, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"], config["architectures"] = "foreign", ["ForeignForCausalLM"]
    config["auto_map"] = {"AutoConfig": "code.ForeignConfig", "AutoModelForCausalLM": "code.ForeignForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        f"Path({str(folder / 'ran')!r}).touch()\n"
        "class ForeignConfig(Qwen3Config):\n"
        "    model_type = 'foreign'\n"
        "class ForeignForCausalLM(Qwen3ForCausalLM):\n"
        "    config_class = ForeignConfig\n"
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_code_of_a_model_is_not_run_unless_the_flag_is_set(foreign: Path) -> None:
    for load in (context_length, lambda path: load_policy(path, "float32")):
        with pytest.raises(ConfigError) as refused:
            load(str(foreign))
        assert str(refused.value) == (
            f"model.path is {str(foreign)!r}, whose config needs Python code that comes with the model; expected a "
            "model that transformers knows by itself. Read that code, and if it may run on every machine of the run, "
            "set model.trust_remote_code=true"
        )
    assert not (foreign / "ran").exists()
    assert context_length(str(foreign), trust_remote_code=True) == 2048
    assert (foreign / "ran").exists()
    model = load_policy(str(foreign), "float32", trust_remote_code=True)
    assert type(model).__name__ == "ForeignForCausalLM"


def test_the_command_line_refuses_in_one_line_and_asks_nothing(foreign: Path, tmp_path: Path) -> None:
    finished = train("--dry-run", f"model.path={foreign}", f"run.dir={tmp_path}/runs", answer="y\ny\ny\n")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.startswith(f"ConfigError: model.path is {str(foreign)!r}, whose config needs Python code")
    assert not (foreign / "ran").exists()


def test_code_of_a_tokenizer_is_not_run_either(tiny_policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_policy, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"], config["auto_map"] = "Foreign", {"AutoTokenizer": ["code.Foreign", "code.Foreign"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**model, "model_type": "foreign"}))
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    with pytest.raises(ConfigError, match=r"model\.path is .* could not be loaded|needs Python code"):
        Tokenizer.load(str(folder))
    assert not (folder / "ran").exists()


def test_a_model_that_transformers_knows_is_loaded_without_the_code_it_brings(foreign: Path) -> None:
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    assert type(load_policy(str(foreign), "float32")).__name__ == "Qwen3ForCausalLM"
    assert not (foreign / "ran").exists()


def test_the_flag_reaches_learner_and_tokenizer(foreign: Path, tmp_path: Path) -> None:
    overrides = ["cluster.kind=inprocess", "learner.world_size=1", f"run.dir={tmp_path}", f"model.path={foreign}"]
    spec = make_spec(load_config(QUICKSTART, [*overrides, "model.trust_remote_code=true"]))
    assert learner_settings(spec, str(foreign)).trust_remote_code
    parts = build_inprocess(spec, str(foreign))
    assert type(parts.learner.policy.model).__name__ == "ForeignForCausalLM"
    assert not load_config(QUICKSTART).model.trust_remote_code


@pytest.mark.slow
@pytest.mark.parametrize("flag", [False, True])
def test_the_flag_reaches_the_engine(flag: bool, tiny_policy: Path) -> None:
    from actors.rollout.engine_args import engine_arguments
    from actors.rollout.worker import engine_environment
    from lpo_ray.config.schema import Inflight
    from lpo_ray.rollout.engine_settings import EngineSettings

    settings = EngineSettings(
        str(tiny_policy), "float32", 64, 4, 1, 1, 0.5, True, True, False, 1, Inflight.keep_recompute, flag
    )
    assert engine_arguments(settings, "gloo").trust_remote_code is flag
    assert engine_environment(settings, 1)["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "0"


# Code of a data set


@pytest.mark.parametrize(("version", "said"), [("3.6.0", "would run a script"), ("4.0.0", "could not be loaded: 404")])
def test_a_datasets_library_that_would_run_scripts_is_refused(
    version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets.py").write_text(
        f"__version__ = '{version}'\ndef load_dataset(path, split):\n    raise OSError('404')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    try:
        with pytest.raises(DataError, match=said):
            open_rows("somebody/data")
    finally:
        sys.modules.pop("datasets", None)  # monkeypatch would put this one back for the tests that follow


# Code of a checkpoint


async def test_a_checkpoint_that_would_run_code_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    overrides = ["cluster.kind=inprocess", "learner.world_size=1", f"run.dir={tmp_path}", f"model.path={tiny_policy}"]
    spec = make_spec(load_config(QUICKSTART, overrides))
    parts = build_inprocess(spec, str(tiny_policy))
    folder = tmp_path / "step_000001"
    await parts.learner.save(folder)
    await parts.learner.restore(folder, 1)
    state = torch.load(folder / "shards" / "state.pt", weights_only=True)
    torch.save({**state, "evil": Evil(tmp_path / "ran")}, folder / "shards" / "state.pt")
    assert _digests(folder)  # a digest is no help: whoever changes the file writes the digest too
    with pytest.raises(CheckpointDamaged, match="more than tensors"):
        await parts.learner.restore(folder, 1)
    assert not (tmp_path / "ran").exists()


# Pickle to the engine core


def handle() -> tuple[object, ...]:
    """What reduce_tensor says of a buffer on a GPU; see torch.multiprocessing.reductions."""
    return (
        torch.Tensor, torch.Size([4096]), (1,), 128, torch.storage.TypedStorage, torch.uint8, 0, b"\x01" * 64, 8192,
        512, False, b"/torch_1_2_3", 7, b"\x02" * 64, True,
    )  # fmt: skip


def test_a_handle_of_gpu_memory_travels_without_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert names[:6] == ["tensor_cls", "tensor_size", "tensor_stride", "tensor_offset", "storage_cls", "dtype"]
    assert len(names) == len(handle())
    with pytest.raises(TypeError, match="not serializable"):
        MsgpackEncoder().encode({"gpu": handle()})
    update = {"bucket": 3, "tickets": [{"GPU-1": to_plain(handle())}], "seconds": 1.0}
    arrived = MsgpackDecoder().decode(MsgpackEncoder().encode(update))
    assert from_plain(arrived["tickets"][0]["GPU-1"]) == handle()


def test_a_handle_of_anything_but_flat_bytes_is_refused() -> None:
    kind, size, _, *rest = handle()
    with pytest.raises(TypeError, match="expected a flat buffer of bytes"):
        to_plain((kind, size, (2,), *rest))


# Ports


def test_a_store_listens_at_one_address_and_serves_its_members() -> None:
    listener = listen("127.0.0.1")
    port = listener.getsockname()[1]
    store = open_store("127.0.0.1", listener, None, seconds=10)
    join_store("127.0.0.1", port, None, seconds=10).set("rank 1", "here")
    assert store.get("rank 1") == b"here"
    with socket.socket() as other:  # every other address of this machine is still free at that port
        other.bind(("127.0.0.2", port))
    with pytest.raises(OSError):
        listen("203.0.113.7")  # of nobody: a documentation address


# Secrets


def test_values_of_secrets_become_their_names(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("file-token-0123456789\n")
    environment = {
        "HF_TOKEN": "hf_0123456789", "WANDB_API_KEY": "short", "PATH": "/usr/bin/long/enough", "MY_SECRET": "abcdefgh",
        "OTHER_TOKEN": "abcdefgh-and-more", "RAY_AUTH_TOKEN_PATH": str(token_file),
        "TOKENIZERS_PARALLELISM": "false-false",
    }  # fmt: skip
    text = "hf_0123456789 short /usr/bin/long/enough abcdefgh-and-more abcdefgh file-token-0123456789 false-false"
    assert redact(text, environment) == (
        "<HF_TOKEN> short /usr/bin/long/enough <OTHER_TOKEN> <MY_SECRET> <RAY_AUTH_TOKEN_PATH> false-false"
    )
    assert secret_in("x abcdefgh y", environment) == "MY_SECRET"
    assert secret_in("nothing", environment) is None
    assert redact("text", {"RAY_AUTH_TOKEN_PATH": "/no/such/file"}) == "text"


def test_a_secret_in_the_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    for override in ("model.path=${oc.env:HF_TOKEN}", f"learner.deepspeed.note=x{SECRETS['HF_TOKEN']}"):
        with pytest.raises(ConfigError) as refused:
            load_config(QUICKSTART, [override])
        key = override.partition("=")[0]
        assert f"{key} holds the value of $HF_TOKEN" in str(refused.value)
        assert SECRETS["HF_TOKEN"] not in str(refused.value)


def test_what_a_dying_process_said_is_written_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    write_json(tmp_path / "status.json", {"detail": f"log: 401 for key {SECRETS['WANDB_API_KEY']}"})
    assert json.loads((tmp_path / "status.json").read_text()) == {"detail": "log: 401 for key <WANDB_API_KEY>"}


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_a_run_or_in_what_it_says(tiny_policy: Path, tmp_path: Path) -> None:
    """Once for a run that ends well, once for one whose verifier puts its environment into an error."""
    (tmp_path / "leaky.py").write_text(
        "import os\n"
        "from lpo_ray.verdict import Verdict\n"
        "def leaks(prompt, response, answer):\n"
        "    raise RuntimeError(f'401: {dict(os.environ)}')\n"
    )
    common = (
        f"run.dir={tmp_path}/runs", f"model.path={tiny_policy}", "learner.world_size=1", "pipeline.groups_per_step=2",
        "evaluation.num_prompts=2", "evaluation.samples_per_prompt=4", "evaluation.ks=[1]", "sampling.max_tokens=4",
        "run.steps=1",
    )  # fmt: skip
    environment = {**SECRETS, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    well = train(*common, "run.name=well", **environment)
    assert well.returncode == 0, well.stderr
    badly = train(*common, "run.name=badly", "task.verifier=leaky:leaks", "evaluation.num_prompts=0", **environment)
    assert badly.returncode == 1
    assert "<WANDB_API_KEY>" in badly.stdout + badly.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "report.html", "summary.json"} <= {path.name for path in files}
    for value in SECRETS.values():
        for finished in (well, badly):
            assert value not in finished.stdout + finished.stderr
        for path in files:
            assert value.encode() not in path.read_bytes(), path

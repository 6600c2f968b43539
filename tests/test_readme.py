"""The commands of the README are real: their files, flags, variants and subcommands exist, and CI runs the one for the tests."""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from brainseg_jax.config.checks import check
from brainseg_jax.config.resolve import unknown_key

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
COMMANDS = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
PYTHON = [shlex.split(command) for command in COMMANDS if re.match(r"(\.venv/bin/)?python ", command)]


def marked(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```bash\n(.*?)\n```", TEXT, re.S)[1]


def test_set_up_main_job_and_tests_are_single_lines_that_make_their_own_environment():
    assert len(BLOCKS[0].splitlines()) == len(BLOCKS[1].splitlines()) == 1
    for name in ("main", "test", "parity"):
        assert len(marked(name).splitlines()) == 1
        assert marked(name).startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert "python -m brainseg_jax.main --config=configs/pretrain_vit.py" in marked("main")


def test_ci_runs_the_readmes_commands_and_the_newest_python(tmp_path):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "README.md").write_text(TEXT)
    script = (ROOT / ".ci" / "run").read_text().replace("bash -euo pipefail -c", "echo")
    (tmp_path / ".ci" / "run").write_text(script)
    (tmp_path / ".ci" / "newest").write_text('echo "$(.ci/command test)"')
    done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    ran = [line for line in done.stdout.splitlines() if not line.startswith("+ ")]
    assert ran == [marked("test"), marked("parity"), marked("test")]


@pytest.mark.parametrize(("missing", "said"), [("root", "has to run as root"), ("apt-get", "apt-get is missing")])
def test_where_the_newest_python_cannot_be_had_is_said_in_a_line(tmp_path, missing, said):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {1000 if missing == 'root' else 0}\n")
    (tmp_path / "id").chmod(0o755)
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run([".ci/newest"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith(".ci/newest: ") and said in done.stderr


def test_every_dependency_has_an_oldest_release():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [re.match(r"[\w-]+", need)[0] for need in (*project["dependencies"], *extras["view"], *extras["test"])]
    floors = subprocess.run([sys.executable, ".ci/floors"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [floor.partition("==")[0] for floor in floors] == [name for name in names if name != "brainseg_jax"]


def test_extras_in_commands_exist():
    declared = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r'"\.\[(.*?)\]"', TEXT):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", declared, re.M), extra


@pytest.mark.parametrize("words", PYTHON, ids=" ".join)
def test_python_commands_name_what_exists(words):
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2])
    else:
        assert (ROOT / words[1]).is_file()
    for word in words:
        flag, _, value = word.removeprefix("--").partition("=")
        if flag == "config":
            file, _, variant = value.partition(":")
            check(runpy.run_path(str(ROOT / file))["get_config"](*filter(None, [variant])))
        elif flag.startswith("config."):
            assert unknown_key(flag.removeprefix("config.")) == ""


@pytest.mark.parametrize("words", [w for w in PYTHON if w[1].startswith("scripts/") or "converters.convert" in w], ids=" ".join)
def test_scripts_know_the_flags_they_are_given(words):
    places = [word for word in words[2:] if not word.startswith("-")]
    command = words[1:3] if words[1] == "-m" else [words[1], *places[:1]]
    known = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in words[2:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known


def test_keys_named_in_the_text_exist():
    for key in re.findall(r"--config\.([\w.]+)", TEXT):
        if key.isupper():
            continue
        assert unknown_key(key) == "", key


@pytest.mark.parity
@pytest.mark.slow
def test_a_monai_network_is_converted_used_tuned_and_given_back_as_the_text_says(tmp_path, monkeypatch, close, rng):
    """The commands and the Python of the section on MONAI's weights, on a small network."""
    import torch
    from monai.networks.nets import SwinUNETR

    from brainseg_jax.weights import safetensors
    from converters.convert import main as convert

    monkeypatch.chdir(tmp_path)
    there, back = ([*words[3:]] for words in PYTHON if "converters.convert" in words)
    torch.manual_seed(0)
    theirs = SwinUNETR(1, 3, feature_size=12, downsample="merging")
    torch.save({"state_dict": theirs.state_dict()}, there[0])
    assert convert([word.replace("legacy", "merging") for word in there]) == 0

    images, labels = rng.normal(size=(1, 32, 32, 64, 1)).astype("float32"), rng.integers(0, 3, (1, 32, 32, 64))
    names = {"images": images, "batches": [(images, labels)] * 3}
    first, second = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(first, names)
    close(names["logits"], logits_of(theirs, images))
    exec(second, names)

    assert convert([word.replace("1.4", "1.6") for word in back]) == 0
    tensors, _ = safetensors.read(Path(back[1]))
    theirs.load_state_dict({name: torch.tensor(a) for name, a in tensors.items()}, strict=True)
    network = names["brainseg_jax"].load(back[0])
    close(network.logits(images), logits_of(theirs, images))
    assert abs(network.logits(images) - names["logits"]).max() > 1e-3  # it has learned


def logits_of(network, images):
    """MONAI's, channels last."""
    import torch

    with torch.no_grad():
        return network.eval()(torch.tensor(images).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()

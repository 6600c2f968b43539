"""Commands in the README and in the documentation are real: files, flags, variants and subcommands exist, and so do links and pictures."""

import functools
import importlib
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

from brainseg_jax.cli.brainseg import COMMANDS
from brainseg_jax.config.checks import check
from brainseg_jax.config.resolve import unknown_key

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Of each module that is a command, the subcommand of `brainseg` that it is, too.
MODULES = {f"brainseg_jax.{name}": name for name in ("predict", "evaluate", "plan", "probe", "parameters")}
MODULES |= {"brainseg_jax.main": "train", "converters.convert": "convert"}
REFERENCE = runpy.run_path(str(ROOT / "scripts" / "reference.py"))


def commands(page: Path) -> list[list[str]]:
    """The words of every `brainseg …` and `python …` in the code of a page, without what starts it (srun, a path)."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += re.findall(r"^ {4}(python .*)$", text, re.M) + re.findall(r"`((?:brainseg|python) [^`]+)`", text)
    found = []
    for line in lines:
        for part in line.split("&&"):
            if at := re.search(r"(?:^|/bin/|\s)((?:brainseg|python) .*)", part.partition(" # ")[0].strip()):
                found.append(shlex.split(at[1]))
    return found


COMMAND_LINES = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page)]
NAMED = pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=[f"{page}: {' '.join(words)}" for page, words in COMMAND_LINES])


def marked(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```bash\n(.*?)\n```", TEXT, re.S)[1]


def subcommand(words: list[str]) -> tuple[str, list[str]]:
    """Which subcommand of `brainseg` a command line is, "" for none, and the words after it."""
    if words[0] == "brainseg":
        return words[1], words[2:]
    if words[1] == "-m":
        return MODULES.get(words[2], ""), words[3:]
    return ("prepare" if words[1] == "scripts/prepare_data.py" else ""), words[2:]


@functools.cache
def known_flags(name: str) -> set[str]:
    """The flags of a subcommand, those of its own subcommands among them, as scripts/reference.py finds them."""
    module = COMMANDS[name][0]
    if parser := REFERENCE["parser_of"](importlib.import_module(module)):
        parts = [part for action in parser._actions if isinstance(action.choices, dict) for part in action.choices.values()]
        return {flag for one in (parser, *parts) for flag in one._option_string_actions}
    return {f"--{flag.name}" for flag in REFERENCE["absl_flags"](module)}


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
    for other in ("docs", "wheel", "optimised"):
        (tmp_path / ".ci" / other).write_text("exit 0")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_extras_in_commands_exist(page):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r'"\.\[(.*?)\]"', page.read_text()):
        assert set(extras.split(",")) <= set(declared)


def test_the_readme_shows_the_commands_it_is_about():
    names = {subcommand(words)[0] for page, words in COMMAND_LINES if page == "README.md"}
    assert {"predict", "train", "convert"} <= names


@NAMED
def test_command_lines_name_what_exists(page, words):
    name, given = subcommand(words)
    if words[0] == "brainseg":
        assert name in COMMANDS
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2])
    else:
        assert (ROOT / words[1]).is_file()
    for word in given:
        flag, equals, value = word.removeprefix("--").partition("=")
        if flag == "config" and equals and not re.search("NAME|FILE|KEY", value):
            file, _, variant = value.partition(":")
            check(runpy.run_path(str(ROOT / file))["get_config"](*filter(None, [variant])))
        elif name and flag.startswith("config.") and word.startswith("--"):
            pass  # test_keys_named_in_the_text_exist
        elif name and word.startswith("--"):
            assert word.partition("=")[0] in known_flags(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_named_in_the_text_exist(page):
    for key in re.findall(r"--config\.([\w.]+)", page.read_text()):
        if not key.isupper():
            assert unknown_key(key) == "", key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if re.match("[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", file.read_text(), re.M)), f"{target}{anchor}"


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return "#" + re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parity
@pytest.mark.slow
def test_a_monai_network_is_converted_used_tuned_and_given_back_as_the_text_says(tmp_path, monkeypatch, close, rng):
    """The commands and the Python of the page on MONAI's weights, on a small network."""
    import torch
    from monai.networks.nets import SwinUNETR

    from brainseg_jax.weights import safetensors
    from converters.convert import main as convert

    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "how-to" / "monai.md"
    there, back = (words[2:] for words in commands(page) if words[1] == "convert" and len(words) > 4)
    torch.manual_seed(0)
    theirs = SwinUNETR(1, 3, feature_size=12, downsample="merging")
    torch.save({"state_dict": theirs.state_dict()}, there[0])
    assert convert([word.replace("legacy", "merging") for word in there]) == 0

    images, labels = rng.normal(size=(1, 32, 32, 64, 1)).astype("float32"), rng.integers(0, 3, (1, 32, 32, 64))
    names = {"images": images, "batches": [(images, labels)] * 3}
    first, second = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
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

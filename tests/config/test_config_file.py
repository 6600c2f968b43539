"""Where a config is looked for: its own path first, then those that come with the package, by name or as in the repository."""

from pathlib import Path

import pytest

from brainseg_jax.config.resolve import CONFIGS, config_file, of_file
from brainseg_jax.core.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_packages_configs_are_the_repositorys():
    assert sorted(p.name for p in CONFIGS.glob("*.py")) == sorted(p.name for p in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", ["pretrain_vit", "pretrain_vit.py", "configs/pretrain_vit.py", "configs/pretrain_vit"])
def test_one_of_the_package_is_found_by_name(name):
    assert of_file(f"{name}:full").epochs == 400.0


def test_a_file_of_that_name_comes_first(tmp_path):
    (tmp_path / "pretrain_vit.py").write_text(
        "from brainseg_jax.config import base\n\n\ndef get_config():\n    c = base()\n    c.steps = 7\n    return c\n"
    )
    assert of_file("pretrain_vit.py").steps == 7


@pytest.mark.parametrize("name", ["pretrain_vitt", "mine/pretrain_vit.py", "pretrain_vit.txt", ""])
def test_another_name_is_refused_with_those_there_are(name):
    with pytest.raises(InputError, match=r"no such config; it is a Python file, or one of finetune_swin_unetr, .*, pretrain_vit$"):
        config_file(name)


def test_old_names_of_keys_go_on_working_in_a_file(tmp_path):
    lines = [
        "from brainseg_jax.config import base",
        "def get_config():",
        "    c = base()",
        "    c.optim.peak = 0.5",
        "    c.augment.cut = dict(chance=0.25)",
    ]
    (tmp_path / "mine.py").write_text("\n".join([*lines, "    c.steps = 1", "    return c", ""]))
    config = of_file("mine.py")
    assert config.optim.lr == 0.5 and config.augment.field_of_view.chance == 0.25
    assert "peak" not in config.optim and "cut" not in config.augment

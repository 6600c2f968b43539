"""The reference of all config keys as Markdown: docs/reference/config.md, which `python -m brainseg_jax.parameters --keys` prints."""

from collections.abc import Iterator

from brainseg_jax.config.keys import EXPERIMENT, GROUPS
from brainseg_jax.core.key import Group

HEAD = """# Config keys

Every key with its default, what it may be, and its meaning. Change a value on the command line by `--config.KEY=VALUE`, or in a config of
your own. The files in `configs/` change some of the defaults; `config.json` in a run folder says what a run used, and where each value came
from. A config is named by its file and a variant, as in `--config=configs/pretrain_vit.py:full`. Old names of keys go on working.

A key that does nothing in an experiment may not be changed there. Keys with a star may be changed when a run is resumed."""


def config_page() -> str:
    """The page: a table a group."""
    return "\n\n".join([HEAD, _table("General", EXPERIMENT, ""), *(_table(name, of, f"{name}.") for name, of in GROUPS.items())]) + "\n"


def _table(title: str, of: Group, prefix: str) -> str:
    only = f" Only with {_condition(of.acts_with)}." if of.acts_with else ""
    head = [f"## {title}", "", of.meaning + only, "", "| key | default | may be | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *_rows(of, prefix)])


def _rows(of: Group, prefix: str, about: str = "") -> Iterator[str]:
    """A line a key; before the meaning of a subgroup's first key stands the subgroup's own."""
    for name, entry in of.keys.items():
        if isinstance(entry, Group):
            yield from _rows(entry, f"{prefix}{name}.", f"**{entry.meaning}** ")
            continue
        default = f"`{entry.default}`" if entry.default != "" else "empty"
        only = f" (only with {_condition(entry.acts_with)})" if entry.acts_with else ""
        cells = (f"`{prefix}{name}`" + r"\*" * entry.resumable, default, entry.may_be, about + entry.meaning + only)
        about = ""
        yield f"| {' | '.join(cells)} |"


def _condition(acts_with: str) -> str:
    """Conditions in words: encoder=vit,swin is `encoder` vit or swin."""
    conditions = [condition.partition("=") for condition in acts_with.split()]
    return " and ".join(f"`{other}` {' or '.join(wanted.split(',')) or 'empty'}" for other, _, wanted in conditions)

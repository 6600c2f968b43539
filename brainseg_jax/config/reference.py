"""The reference of all config keys as Markdown: docs/reference/config.md, which `python -m brainseg_jax.parameters --keys` prints."""

from collections.abc import Iterator

from brainseg_jax.config.keys import EXPERIMENT, GROUPS
from brainseg_jax.core.config_key import Group

HEAD = """# Config keys

Every key with its default, allowed values and meaning. Change a value on the command line by `--config.KEY=VALUE`, or in a config of your
own. The files in `configs/` change some of the defaults; `config.json` in a run folder lists the values of the run and their sources. A
config is named by its file and a variant, as in `--config=configs/pretrain_vit.py:full`. Old names of keys still work.

A key without effect in an experiment cannot be changed there. Keys with a star may be changed when a run is resumed."""


def config_page() -> str:
    """The page, a table for each group."""
    tables = [_table("General", EXPERIMENT, ""), *(_table(name, group, f"{name}.") for name, group in GROUPS.items())]
    return "\n\n".join([HEAD, *tables]) + "\n"


def _table(title: str, group: Group, prefix: str) -> str:
    only = f" Only with {_condition(group.acts_with)}." if group.acts_with else ""
    head = [f"## {title}", "", group.meaning + only, "", "| key | default | may be | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *_rows(group, prefix)])


def _rows(group: Group, prefix: str, about: str = "") -> Iterator[str]:
    """A line for each key; a subgroup's meaning precedes that of its first key."""
    for name, entry in group.keys.items():
        if isinstance(entry, Group):
            yield from _rows(entry, f"{prefix}{name}.", f"**{entry.meaning}** ")
            continue
        default = f"`{entry.default}`" if entry.default != "" else "empty"
        only = f" (only with {_condition(entry.acts_with)})" if entry.acts_with else ""
        cells = (f"`{prefix}{name}`" + r"\*" * entry.resumable, default, entry.may_be, about + entry.meaning + only)
        about = ""
        yield f"| {' | '.join(cells)} |"


def _condition(acts_with: str) -> str:
    """Conditions in words, e.g. "`encoder` vit or swin" for encoder=vit,swin."""
    conditions = [condition.partition("=") for condition in acts_with.split()]
    return " and ".join(f"`{other}` {' or '.join(wanted.split(',')) or 'empty'}" for other, _, wanted in conditions)

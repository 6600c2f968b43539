"""The reference of all config keys as Markdown: docs/reference/config.md, which `python -m brainseg_jax.parameters --keys` prints."""

from typing import Any

from brainseg_jax.config.keys import EXPERIMENT, GROUPS
from brainseg_jax.core.key import Group, Key, flatten

HEAD = """# Config keys

Every key with its default, what it may be, and its meaning. Change a value on the command line by `--config.KEY=VALUE`, or in a config of
your own. The files in `configs/` change some of the defaults; `config.json` in a run folder says what a run used, and where each value came
from. A config is named by its file and a variant, as in `--config=configs/pretrain_vit.py:full`. Old names of keys go on working.

A key that does nothing in an experiment may not be changed there. Keys with a star may be changed when a run is resumed."""


def config_page() -> str:
    """The page: a table a group."""
    own = {name: entry for name, entry in EXPERIMENT.keys.items() if isinstance(entry, Key)}
    tables = [_table("The experiment", EXPERIMENT.meaning, flatten(own))]
    for name, group in GROUPS.items():
        tables.append(_table(name, group.meaning, flatten({name: group}), group.acts_with, _subgroups(group)))
    return "\n\n".join([HEAD, *tables]) + "\n"


def _table(title: str, meaning: str, keys: dict[str, Key], acts_with: str = "", subgroups: dict[str, str] | None = None) -> str:
    """A group's keys; in the meaning of a subgroup's first key stands the subgroup's own."""
    lines = [f"## {title}", "", meaning + (f" Only with {_condition(acts_with)}." if acts_with else ""), ""]
    lines += ["| key | default | may be | meaning |", "|---|---|---|---|"]
    told = set()
    for name, key in keys.items():
        of = name.rpartition(".")[0].partition(".")[2]
        about = (subgroups or {}).get(of, "") if of not in told else ""
        told.add(of)
        own = key.acts_with.removeprefix(acts_with).strip()
        what = " ".join(filter(None, [about and f"**{about}**", key.meaning, own and f"(only with {_condition(own)})"]))
        lines.append(
            "| " + " | ".join(text.replace("|", r"\|") for text in (_name(name, key), _code(key.default), key.may_be, what)) + " |"
        )
    return "\n".join(lines)


def _subgroups(group: Group) -> dict[str, str]:
    return {name: entry.meaning for name, entry in group.keys.items() if isinstance(entry, Group)}


def _code(value: Any) -> str:
    return f"`{value}`" if value != "" else "empty"


def _condition(acts_with: str) -> str:
    """Conditions in words: encoder=vit,swin is `encoder` vit or swin."""
    said = []
    for condition in acts_with.split():
        other, _, wanted = condition.partition("=")
        said.append(f"`{other}` {' or '.join(wanted.split(',')) or 'empty'}")
    return " and ".join(said)

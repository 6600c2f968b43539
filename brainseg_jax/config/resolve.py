"""Configs from where they come: a file, with the command line, a run's record, a checkpoint's card; old names of keys go on working."""

import difflib
import importlib.util
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.config.checks import idle_keys
from brainseg_jax.config.keys import KEYS, base, flat, get_key
from brainseg_jax.core.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"  # a link to those of the repository, a folder of the installed package
FORMAT = 1  # of cards and run records; they say it since there is more than one form. Raise it when an older version would misread them
# The old name of a key: the name it has now. The command line, config files, cards and records may say either.
RENAMED = {
    "optim.peak": "optim.lr",
    "optim.rates": "optim.lr_multipliers",
    "data.masks": "data.num_labelled",
    "data.lacking": "data.missing_labels",
    "augment.cut.chance": "augment.field_of_view.chance",
    "augment.cut.share": "augment.field_of_view.share",
    "ssl.cut": "ssl.cutout",
}


def recipe(variant: str, recipes: dict[str, Callable[[ConfigDict], None]], file: str) -> Callable[[ConfigDict], None]:
    """The recipe of a config file's variant; InputError, with their names, if there is none of this name."""
    if variant not in recipes:
        raise InputError(f"{file} has no variant {variant!r}; use one of {', '.join(recipes)}")
    return recipes[variant]


def config_file(name: str) -> Path:
    """The file of a config: the one of this path, or of those that come with the package, by its name (`pretrain_vit`) or as in its
    repository (`configs/pretrain_vit.py`). InputError where there is none.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".py":
        return path
    own = CONFIGS / f"{path.stem}.py"
    if path.suffix in ("", ".py") and str(path.parent) in (".", "configs") and own.is_file():
        return own
    raise InputError(f"{name}: no such config; it is a Python file, or one of {', '.join(sorted(p.stem for p in CONFIGS.glob('*.py')))}")


def of_file(name: str) -> ConfigDict:
    """The experiment of FILE.py or FILE.py:VARIANT, as --config takes it.

    Raises InputError for a file or a variant that there is not, for a file that fails, with the line, and for what is no experiment.
    """
    file, _, variant = name.partition(":")
    file = str(config_file(file))
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"{file}: has no function get_config, which makes the experiment; write it as in configs/pretrain_vit.py")
        made = module.get_config(variant) if variant else module.get_config()
    except InputError:
        raise
    except Exception as error:  # a config is a program, and may fail as any
        what = " ".join(f"{type(error).__name__}: {getattr(error, 'msg', error)}".split())[:300]
        raise InputError(f"{file}: {_line_of(file, error)}{what}; correct the file") from None
    if not isinstance(made, ConfigDict):
        raise InputError(
            f"{file}: its get_config gives {type(made).__name__} and no ConfigDict; begin it with c = base(), end it with return c"
        )
    with made.unlocked():
        for old, new in RENAMED.items():
            if old in flat(made):
                made.update_from_flattened_dict({new: get_key(made, old)})
                _delete(made, old)
    keys = flat(made).keys()
    if strange := sorted(keys - KEYS.keys()):
        raise InputError(f"{file}: its get_config sets {strange[0]}: {unknown_key(strange[0])}")
    if lacking := sorted(KEYS.keys() - keys):
        raise InputError(f"{file}: its get_config gives no {lacking[0]}; begin it with c = base(), which has every key")
    return made


def _delete(c: ConfigDict, key: str) -> None:
    """Takes a dotted key away, and groups that hold nothing then."""
    group, _, name = key.rpartition(".")
    del (get_key(c, group) if group else c)[name]
    if group and not len(get_key(c, group)):
        _delete(c, group)


def _line_of(file: str, error: Exception) -> str:
    """Where in a file an error arose, as the beginning of a text; "" where that is not known."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places += [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
    lines = [line for name, line in places if name and line and Path(name).absolute() == Path(file).absolute()]
    return f"line {lines[-1]}: " if lines else ""


def unknown_key(key: str) -> str:
    """What is wrong with a dotted key, in a few words, or "" if there is such a key."""
    if RENAMED.get(key, key) in KEYS:
        return ""
    close = difflib.get_close_matches(key, KEYS, n=1) or [k for k in KEYS if k.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"there is no such key{f' (did you mean {close[0]}?)' if close else ''}; brainseg parameters --keys shows all"


def with_sources(c: ConfigDict, overridden: set[str], file: str) -> dict[str, dict[str, Any]]:
    """Every value with where it came from: the command line, the config file, or the default. Ready for JSON."""
    resolved = {}
    for key, value in flat(c).items():
        source = "command line" if key in overridden else "default" if value == KEYS[key].default else file
        resolved[key] = {"value": value, "from": source}
    return json.loads(json.dumps(resolved))


def known_entries(resolved: Any, place: str) -> dict[str, dict[str, Any]]:
    """The entries of `with_sources`, as a card or config.json keeps them, by today's names of their keys.

    Raises InputError, beginning with `place`, for what is none, for a key that nobody knows, and for the form of a newer version.
    """
    if not isinstance(resolved, dict) or not resolved:
        raise InputError(f"{place}: holds no config; use another one, or bring it back from a backup")
    check_format(resolved.get("format", FORMAT), place)
    found = {}
    for name, entry in resolved.items():
        key = RENAMED.get(name, name)
        if name == "format":
            continue
        if key not in KEYS:
            raise InputError(
                f"{place}: has the key {key!r}, and {unknown_key(key)}; use the version of brainseg_jax that wrote it, or a newer one"
            )
        if not isinstance(entry, dict) or "value" not in entry:
            raise InputError(f"{place}: has no value under {key!r}; it is damaged, bring it back from a backup")
        found[key] = entry
    # Records of before held what was computed in as if it had been asked for.
    if (entry := found.get("dtype")) and entry.get("from") == "default" and entry["value"] != (asked := KEYS["dtype"].default):
        found["dtype"] = {"used": entry["value"]} | entry | {"value": asked}
    return found


def used_value(resolved: dict[str, dict[str, Any]], key: str) -> Any:
    """What a run used, where it was asked to choose by the place ("auto"); else what it was asked for."""
    return resolved[key].get("used", resolved[key]["value"])


def check_format(number: Any, place: str) -> None:
    """Raises InputError, beginning with `place`, for a card or record in the form of a version that came later."""
    if not isinstance(number, int) or number > FORMAT:
        raise InputError(f"{place}: is of format {number!r}, and this brainseg_jax reads up to {FORMAT}; use the version that wrote it")


def from_resolved(resolved: Any, place: str = "config") -> ConfigDict:
    """The config that `with_sources` wrote down; a key that it lacks has its default. Raises InputError as `known_entries`."""
    c = base()
    for key, entry in known_entries(resolved, place).items():
        try:
            c.update_from_flattened_dict({key: as_tuple(entry["value"])})
        except (TypeError, ValueError):
            raise InputError(
                f"{place}: {key} is {entry['value']!r}, where something like {KEYS[key].default!r} is meant; is it damaged?"
            ) from None
    return c


def of_card(card: dict[str, Any], place: Path | str) -> ConfigDict:
    """The config of a checkpoint's card. Raises InputError, beginning with the checkpoint, for a card without one, or that is unknown."""
    check_format(card.get("format", FORMAT), str(place))
    return from_resolved(card.get("config"), f"{place}: its card")


def as_tuple(value: Any) -> Any:
    """JSON knows no tuples: its lists become tuples again."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, list) else value


def differing_keys(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Keys whose difference makes another experiment, as "key: old → new", by what was used.

    Where one lacks a key, as old records do, it has its default. Keys that do nothing make none.
    """
    defaults = json.loads(json.dumps({name: key.default for name, key in KEYS.items()}))
    value = lambda resolved, key: used_value(resolved, key) if key in resolved else defaults.get(key)  # noqa: E731
    keys = sorted((old.keys() | new.keys()) - {name for name, key in KEYS.items() if key.resumable} - set(idle_keys(from_resolved(new))))
    return [f"{key}: {value(old, key)} → {value(new, key)}" for key in keys if value(old, key) != value(new, key)]

"""Configs from a file, the command line, a run's record or a checkpoint's card; old names of keys still work."""

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

CONFIGS = Path(__file__).parents[1] / "configs"  # a link to the repository's, or a folder of the installed package
FORMAT = 1  # of cards and run records. Raise it when an older version would misread them
# Old names of keys and their new names. The command line, config files, cards and records may have either.
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
    """The recipe of a config file's variant. Raises InputError, with the known names, for an unknown one."""
    if variant not in recipes:
        raise InputError(f"{file} has no variant {variant!r}; use one of {', '.join(recipes)}")
    return recipes[variant]


def config_file(name: str) -> Path:
    """The file of a config, given by path or, for those of the package, by name (`pretrain_vit`) or its path in the repository
    (`configs/pretrain_vit.py`). Raises InputError if there is none."""
    path = Path(name)
    if path.is_file() and path.suffix == ".py":
        return path
    own = CONFIGS / f"{path.stem}.py"
    if path.suffix in ("", ".py") and str(path.parent) in (".", "configs") and own.is_file():
        return own
    raise InputError(f"{name}: no such config; it is a Python file, or one of {', '.join(sorted(p.stem for p in CONFIGS.glob('*.py')))}")


def of_file(name: str) -> ConfigDict:
    """The config of FILE.py or FILE.py:VARIANT, as --config takes it.

    Raises InputError for an unknown file or variant, for a file that fails, with the line, and for a result that is not a config.
    """
    file, _, variant = name.partition(":")
    file = str(config_file(file))
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"{file}: has no function get_config, which makes the experiment; write it as in configs/pretrain_vit.py")
        config = module.get_config(*[variant] if variant else [])
    except InputError:
        raise
    except Exception as error:  # a config is a program and may fail in any way
        reason = " ".join(f"{type(error).__name__}: {getattr(error, 'msg', error)}".split())[:300]
        raise InputError(f"{file}: {_line_of(file, error)}{reason}; correct the file") from None
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{file}: its get_config gives {type(config).__name__} and no ConfigDict; begin it with c = base(), end it with return c"
        )
    with config.unlocked():
        for old, new in RENAMED.items():
            if old in flat(config):
                config.update_from_flattened_dict({new: get_key(config, old)})
                _delete(config, old)
    keys = flat(config).keys()
    if unknown := sorted(keys - KEYS.keys()):
        raise InputError(f"{file}: its get_config sets {unknown[0]}: {unknown_key(unknown[0])}")
    if missing := sorted(KEYS.keys() - keys):
        raise InputError(f"{file}: its get_config gives no {missing[0]}; begin it with c = base(), which has every key")
    return config


def _delete(c: ConfigDict, key: str) -> None:
    """Removes a dotted key, and groups that become empty."""
    group, _, name = key.rpartition(".")
    del (get_key(c, group) if group else c)[name]
    if group and not len(get_key(c, group)):
        _delete(c, group)


def _line_of(file: str, error: Exception) -> str:
    """The place of an error in a file as "line N: ", or "" if unknown."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places += [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
    lines = [line for name, line in places if name and line and Path(name).absolute() == Path(file).absolute()]
    return f"line {lines[-1]}: " if lines else ""


def unknown_key(key: str) -> str:
    """The fault of an unknown dotted key, with a suggestion, or "" for a known one."""
    if RENAMED.get(key, key) in KEYS:
        return ""
    close = difflib.get_close_matches(key, KEYS, n=1) or [k for k in KEYS if k.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"there is no such key{f' (did you mean {close[0]}?)' if close else ''}; brainseg parameters --keys shows all"


def with_sources(c: ConfigDict, overridden: set[str], file: str) -> dict[str, dict[str, Any]]:
    """Every value with its source, the command line, the config file or the default, ready for JSON."""
    resolved = {}
    for key, value in flat(c).items():
        source = "command line" if key in overridden else "default" if value == KEYS[key].default else file
        resolved[key] = {"value": value, "from": source}
    return json.loads(json.dumps(resolved))


def known_entries(resolved: Any, place: str) -> dict[str, dict[str, Any]]:
    """The entries of `with_sources` from a card or config.json, under the current names of keys.

    Raises InputError, beginning with `place`, for anything else, for an unknown key, and for the format of a newer version.
    """
    if not isinstance(resolved, dict) or not resolved:
        raise InputError(f"{place}: holds no config; use another one, or bring it back from a backup")
    check_format(resolved.get("format", FORMAT), place)
    entries = {}
    for name, entry in resolved.items():
        if name == "format":
            continue
        key = RENAMED.get(name, name)
        if key not in KEYS:
            raise InputError(
                f"{place}: has the key {key!r}, and {unknown_key(key)}; use the version of brainseg_jax that wrote it, or a newer one"
            )
        if not isinstance(entry, dict) or "value" not in entry:
            raise InputError(f"{place}: has no value under {key!r}; it is damaged, bring it back from a backup")
        entries[key] = entry
    # Older records hold the dtype used in place of the default "auto".
    if (entry := entries.get("dtype")) and entry.get("from") == "default" and entry["value"] != (asked := KEYS["dtype"].default):
        entries["dtype"] = {"used": entry["value"]} | entry | {"value": asked}
    return entries


def used_value(resolved: dict[str, dict[str, Any]], key: str) -> Any:
    """The value a run used: what it chose for "auto", otherwise the config's."""
    return resolved[key].get("used", resolved[key]["value"])


def check_format(number: Any, place: str) -> None:
    """Raises InputError, beginning with `place`, for a card or record in the format of a newer version."""
    if not isinstance(number, int) or number > FORMAT:
        raise InputError(f"{place}: is of format {number!r}, and this brainseg_jax reads up to {FORMAT}; use the version that wrote it")


def from_resolved(resolved: Any, place: str = "config") -> ConfigDict:
    """The config from the entries of `with_sources`; missing keys have their defaults. Raises InputError as `known_entries` does."""
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
    """The config of a checkpoint's card. Raises InputError, beginning with the checkpoint, for a card without a usable config."""
    check_format(card.get("format", FORMAT), str(place))
    return from_resolved(card.get("config"), f"{place}: its card")


def as_tuple(value: Any) -> Any:
    """The value with JSON's lists turned back into tuples."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, list) else value


def differing_keys(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Keys whose used values differ and thus change the experiment, as "key: old → new".

    A key that is missing, as in old records, has its default. Resumable keys and keys without effect are ignored.
    """
    defaults = json.loads(json.dumps({name: key.default for name, key in KEYS.items()}))
    value = lambda resolved, key: used_value(resolved, key) if key in resolved else defaults.get(key)  # noqa: E731
    keys = sorted((old.keys() | new.keys()) - {name for name, key in KEYS.items() if key.resumable} - set(idle_keys(from_resolved(new))))
    return [f"{key}: {value(old, key)} → {value(new, key)}" for key in keys if value(old, key) != value(new, key)]

"""Definitions of config keys, one line each: `key(default, rule, meaning)`, used by checks, `parameters --keys` and the reference."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A constraint on a key's values. `words`: its description, {n} for the kind of number. `fault`: (value, default) → error, or ""."""

    words: str
    fault: Callable[[Any, Any], str] = lambda value, default: ""  # ConfigDict itself checks the type against the default's


@dataclass(frozen=True)
class Key:
    """A config key.

    `acts_with`: conditions on other keys for this one to have an effect, "KEY=VALUE" or "KEY=ONE,OTHER", separated by blanks.
    `part`: "encoder" or "decoder" if the value determines its architecture; weights made with another value do not fit.
    `resumable`: may change when a run is resumed, since it affects only logging, paths or devices and not the result.
    """

    default: Any
    rule: Rule
    meaning: str
    acts_with: str = ""
    part: str | None = None
    resumable: bool = False

    @property
    def may_be(self) -> str:
        """The allowed values, in words."""
        several = isinstance(self.default, tuple)
        example = self.default[0] if several and self.default else self.default
        return self.rule.words.format(n=("whole number" if isinstance(example, int) else "number") + "s" * several)


class Group(NamedTuple):
    """Keys with a common prefix. `acts_with` is added to each key's own conditions; `part` is the default for keys without one."""

    meaning: str
    keys: "dict[str, Key | Group]"
    acts_with: str = ""
    part: str = ""


key = Key


def group(meaning: str, acts_with: str = "", part: str = "", **keys: Key | Group) -> Group:
    """A group of keys and subgroups, by name."""
    return Group(meaning, keys, acts_with, part)


def flatten(keys: dict[str, Key | Group], prefix: str = "", acts_with: str = "", part: str = "") -> dict[str, Key]:
    """Every key by its dotted name, with the conditions and part of its groups."""
    flat = {}
    for name, entry in keys.items():
        conditions = f"{acts_with} {entry.acts_with}".strip()
        if isinstance(entry, Group):
            flat |= flatten(entry.keys, f"{prefix}{name}.", conditions, entry.part or part)
        else:
            flat[prefix + name] = replace(entry, acts_with=conditions, part=part if entry.part is None else entry.part)
    return flat


def _each(valid: Callable[[Any], bool], words: str, refusal: str) -> Rule:
    """A rule for a number, or for each number of a tuple."""

    def fault(value: Any, default: Any) -> str:
        numbers = value if isinstance(value, tuple) else (value,)
        return "" if all(isinstance(n, Real) and valid(n) for n in numbers) else f"is {value}; it {refusal}"

    return Rule(words, fault)


positive = _each(lambda n: 0 < n < math.inf, "{n} greater than 0", "must be greater than 0, and finite")
not_negative = _each(lambda n: 0 <= n < math.inf, "{n} not less than 0", "must not be negative, and finite")
fraction = _each(lambda n: 0 <= n <= 1, "{n} from 0 to 1", "is a share: from 0 to 1")
below_one = _each(lambda n: 0 <= n < 1, "{n} from 0 to less than 1", "must be at least 0 and less than 1")
number = Rule("{n}")  # bounds are checked in config/checks.py
switch = Rule("True or False")
text = Rule("text")
names = Rule("names")


def one_of(*choices: str) -> Rule:
    """A rule for a choice between words."""
    return Rule(
        " · ".join(f"`{choice}`" for choice in choices),
        lambda value, default: "" if value in choices else f"is {value!r}; use one of {', '.join(choices)}",
    )


def three(rule: Rule) -> Rule:
    """A rule for three numbers, each by `rule`; integers where the default's are."""

    def fault(value: Any, default: Any) -> str:
        kind = int if isinstance(default[0], int) else (int, float)
        if len(value) != 3 or not all(isinstance(n, kind) for n in value):
            return f"is {value}; give three numbers, e.g. {default}"
        return rule.fault(value, default)

    return Rule(f"three {rule.words}", fault)


def _counts(value: Any, default: Any) -> str:
    return positive.fault(value, default) or (
        "" if all(isinstance(n, int) for n in value) else f"is {value}; give whole numbers, e.g. {default}"
    )


def _patterns(value: Any, default: Any) -> str:
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            return f"has {pattern!r}: {error}; give regular expressions of parameters' paths"
    return ""


def _factors(value: Any, default: Any) -> str:
    for rule in value:
        if not isinstance(rule, tuple) or len(rule) != 2 or not isinstance(rule[1], int | float):
            return f"has {rule!r}; give (pattern, factor) pairs, e.g. (('encoder/.*', 0.1),)"
        if not 0 <= rule[1] < math.inf:
            return f"has {rule!r}; the factor must not be negative, and finite, e.g. 0.1"
    return _patterns([pattern for pattern, _ in value], default)


counts = Rule("{n} greater than 0", _counts)
patterns = Rule("regular expressions of parameters' paths", _patterns)
factors = Rule("(regular expression of paths, factor) pairs", _factors)

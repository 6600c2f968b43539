"""A config key on one line, `key(default, rule, meaning)`: what checks, `parameters --keys` and docs/reference/config.md say of it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a key may be. `words`: for people, {n} standing for the kind of number. `fault`: of (value, default) what is wrong, or ""."""

    words: str
    fault: Callable[[Any, Any], str] = lambda value, default: ""  # the type is ConfigDict's to check: it keeps the default's


@dataclass(frozen=True)
class Key:
    """One value of an experiment.

    `acts_with`: what other keys have to be for this one to do something, "KEY=VALUE" or "KEY=ONE,OTHER", several with a blank between.
    `part`: "encoder" or "decoder" where the value says which network that is; weights of another value do not fit.
    `resumable`: may differ when a run is resumed, as it changes what is printed or where things lie, and not what is computed.
    """

    default: Any
    rule: Rule
    meaning: str
    acts_with: str = ""
    part: str | None = None
    resumable: bool = False

    @property
    def may_be(self) -> str:
        """What the value may be, in words."""
        several = isinstance(self.default, tuple)
        one = self.default[0] if several and self.default else self.default
        return self.rule.words.format(n=("whole number" if isinstance(one, int) else "number") + "s" * several)


class Group(NamedTuple):
    """Keys that have a name in common, `meaning` says of what; what they act with, and their part, is added to each one's own."""

    meaning: str
    keys: "dict[str, Key | Group]"
    acts_with: str = ""
    part: str = ""


key = Key


def group(meaning: str, acts_with: str = "", part: str = "", **keys: Key | Group) -> Group:
    """A group of keys and of further groups, by their names."""
    return Group(meaning, keys, acts_with, part)


def flatten(keys: dict[str, Key | Group], prefix: str = "", acts_with: str = "", part: str = "") -> dict[str, Key]:
    """Every key under its dotted name, with what its groups say of it."""
    found = {}
    for name, entry in keys.items():
        both = f"{acts_with} {entry.acts_with}".strip()
        if isinstance(entry, Group):
            found |= flatten(entry.keys, f"{prefix}{name}.", both, entry.part or part)
        else:
            found[prefix + name] = replace(entry, acts_with=both, part=part if entry.part is None else entry.part)
    return found


def _each(good: Callable[[Any], bool], words: str, refusal: str) -> Rule:
    """A rule of a number, or of each one in a tuple."""

    def fault(value: Any, default: Any) -> str:
        numbers = value if isinstance(value, tuple) else (value,)
        return "" if all(isinstance(n, Real) and good(n) for n in numbers) else f"is {value}; it {refusal}"

    return Rule(words, fault)


positive = _each(lambda n: 0 < n < math.inf, "{n} greater than 0", "must be greater than 0, and finite")
not_negative = _each(lambda n: 0 <= n < math.inf, "{n} not less than 0", "must not be negative, and finite")
fraction = _each(lambda n: 0 <= n <= 1, "{n} from 0 to 1", "is a share: from 0 to 1")
below_one = _each(lambda n: 0 <= n < 1, "{n} from 0 to less than 1", "must be at least 0 and less than 1")
number = Rule("{n}")  # whose bounds another check knows
switch = Rule("True or False")
text = Rule("text")
names = Rule("names")


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule(
        " · ".join(f"`{choice}`" for choice in choices),
        lambda value, default: "" if value in choices else f"is {value!r}; use one of {', '.join(choices)}",
    )


def three(rule: Rule) -> Rule:
    """Three numbers, each by the rule; whole ones where the default's are."""

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

"""What the words of a published row say of a setting: that it is on, that it is off, or nothing.

A setting that is named is on, unless a negation reaches it (``no torch.compile``, ``without FSDP or LoRA``,
``--disable-cuda-graphs``) or its value says so (``torch.compile=False``, ``CUDA graphs: off``, ``LoRA (disabled)``).
A negation reaches over two plain words, and over a list joined by ``or``, ``nor``, ``and`` or a slash, but never out of
its clause or its brackets. A comma ends a clause unless it joins a list of three that a last ``or``, ``nor`` or
``, and`` closes (``w/o CUDA graphs, recompute, and offloading``). What stands in a comparison (``3 % over
torch.compile``, ``with and without FSDP``) or has a value that says nothing (``LoRA=?``) is not this row's setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

_START, _END = r"(?<![A-Za-z])", r"(?![A-Za-z])"
_NO = (
    r"no|not|non|without|w/o|never|neither|nor|excluding|minus|unset|dis(?:able[sd]?|abling)|deactivated?|"
    r"(?:turn|switch)(?:ed|ing|es)?[ _-]off"
)
_NEGATION = re.compile(rf"{_START}(?:{_NO}){_END}|!", re.IGNORECASE)
_ASIDE = re.compile(
    rf"{_START}(?:vs|versus|than|over|compared|relative|unlike|instead|rather|if|would|could|whether|before|"
    rf"with(?:/| (?:and|or) )without|w/ (?:and|or) w/o){_END}",
    re.IGNORECASE,
)
OFF = r"(?:off|false|none|null|no|0+(?:\.0*)?|disabled?|unused|never|inactive|deactivated|(?:turned|switched)[ _-]off)"
"""A value that says that a setting is off."""
_NOT_IN_USE = r"not (?:used|in use|enabled|set|applied|active|supported)"
_OFF_AFTER = re.compile(
    rf"\s*[=:]\s*[\"']?(?:{OFF}|{_NOT_IN_USE})[\"']?(?![\w.])|"
    rf"\s*(?:\(|\s(?:is|was|are|were|set to)\s)\s*(?:{OFF}|{_NOT_IN_USE})(?=\s*(?:$|[)\]]))|"
    rf"(?:\s*\([^)]*\))?[\s_-]+(?:(?:is|was|are|were)\s+)?(?:(?:turned|switched)\s+)?"
    rf"(?:(?:off|disabled|unused|inactive|deactivated|false|{_NOT_IN_USE}){_END}|"
    r"(?:no|none|null)(?=\s*(?:$|[;,|)\]\n])))",
    re.IGNORECASE,
)
_OPEN_AFTER = re.compile(
    r"\s*(?:[=:(]\s*|\s)(?:\?|unknown|unspecified|n/?a\b|tbd|not (?:stated|given|known|reported|specified))",
    re.IGNORECASE,
)
_BREAK = re.compile(r"[;|,\n]|\.(?=\s|$)")
_ITEM = rf"(?:(?!{_START}(?:{_NO}|but|with|w/|then|plus|only){_END})[^;|,\n()\[\]=:])+"
_LIST = re.compile(
    rf"{_START}(?:{_NO})\s+{_ITEM}(?:,{_ITEM})*(?:,{_ITEM},\s*(?:and|or|nor)|,{_ITEM}\s(?:or|nor))\s", re.IGNORECASE
)
_JOINS = {"or", "nor", "and", "/", "&", ","}
_STOPS = {"but", "with", "w", "then", "plus", "only", "+", "(", ")", "["}
_SETTING = re.compile(
    r"\S*(?:recomp|checkpoint|compile|fsdp|zero|lora|graph|overlap|flash|shard|fp\d+|bf16|offload)\S*|"
    r"ac|sp|tp|cp|pp|dp|ep|ddp|mtp|gqa|sft",
    re.IGNORECASE,
)
MOST_WORDS_BETWEEN = 2


@dataclass(frozen=True)
class Mention:
    """A setting's name in a text, from ``start`` to ``end`` with its negation or value, and whether it is on there."""

    start: int
    end: int
    on: bool


@lru_cache(maxsize=2**14)
def mentions(text: str, pattern: str) -> tuple[Mention, ...]:
    """Every place that says whether the setting called ``pattern``, a regular expression, is on.

    Kept, as most cells stand in many rows of a source, and each is asked of each setting several times.
    """
    found = (_mention(text, match) for match in _compiled(pattern).finditer(text))
    return tuple(one for one in found if one is not None)


def said(text: str, pattern: str) -> bool | None:
    """Whether ``text`` says that the setting is on; ``None`` where it does not say, or says both."""
    answers = {one.on for one in mentions(text, pattern)}
    return answers.pop() if len(answers) == 1 else None


def contradicts(text: str, pattern: str) -> bool:
    """Whether ``text`` says both that the setting is on and that it is off."""
    return len({one.on for one in mentions(text, pattern)}) == 2


def without_what_is_off(text: str, pattern: str) -> tuple[str, int]:
    """``text`` without the mentions that are off, and how many there were."""
    off = [one for one in mentions(text, pattern) if not one.on]
    for one in sorted(off, key=lambda one: -one.start):
        text = f"{text[: one.start]} {text[one.end :]}"
    return text, len(off)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@lru_cache(maxsize=64)
def _lists(text: str) -> tuple[tuple[int, int], ...]:
    """From where to where the text negates a list whose commas end no clause."""
    return tuple(one.span() for one in _LIST.finditer(text))


def _mention(text: str, match: re.Match[str]) -> Mention | None:
    breaks = [
        one.end()
        for one in _BREAK.finditer(text, 0, match.start())
        if not (one[0] == "," and any(first < one.start() < last for first, last in _lists(text)))
    ]
    start, (_, end) = (breaks[-1] if breaks else 0), match.span()
    before, after = text[start : match.start()], text[end:]
    if _ASIDE.search(before) or _OPEN_AFTER.match(after):
        return None
    value, negation = _OFF_AFTER.match(after), _negation(before)
    negated = negation is not None
    at = start + negation if negated else match.start()
    return Mention(at, end + (value.end() if value else 0), not negated and value is None)


def _negation(before: str) -> int | None:
    """Where in the words before a setting a negation stands that reaches it; ``None`` where none does."""
    found = list(_NEGATION.finditer(before))
    return found[-1].start() if found and _reaches(before[found[-1].end() :]) else None


def _reaches(between: str) -> bool:
    """Whether a negation reaches over the words ``between`` it and a setting."""
    words = re.findall(r"[A-Za-z0-9.]+|[^\sA-Za-z0-9_\-:=\"']", between.lower())
    joins = [k for k, word in enumerate(words) if word in _JOINS]
    rest = words[joins[-1] + 1 :] if joins else words
    if _STOPS & set(words) or len(rest) > MOST_WORDS_BETWEEN:
        return False
    return not any(_SETTING.fullmatch(word) for word in rest)

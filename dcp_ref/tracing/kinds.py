"""Kinds of tokens, as a reader would call them, and kinds of one's own."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("whitespace", "punctuation", "digit", "rest of a word", "function word", "capitalised", "word")
FUNCTION_WORDS = re.compile(
    "a|about|after|all|an?d?|any|are|as|at|be|been|before|but|by|can|could|did|do|for|from|had|has|have|he|her|him|his|"
    "how|i|if|in|into|is|it|its|may|me|might|more|my|no|nor|not|now|of|on|one|or|our|out|shall|she|should|so|some|such|"
    "than|that|the|their|them|then|there|these|they|this|to|too|up|upon|us|very|was|we|were|what|when|which|who|whom|"
    "will|with|would|you|your", re.IGNORECASE)
END_OF_TEXT = re.compile(r"<\|endoftext\|>|</?s>")


def kinds_of(texts: Sequence[str], own: Mapping[str, str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The kind of each token, int8 [T], an index into the names that come second.

    `own`: the name of a kind and its regular expression, tried in order before the others; it must match somewhere in
    the token's text, its space included. Raises ValueError for one that is no regular expression.
    """
    names = (*(own or {}), *KINDS)
    patterns = [(name, _compiled(name, pattern)) for name, pattern in (own or {}).items()]
    found, before = [], ""
    for text in texts:
        name = next((name for name, pattern in patterns if pattern.search(text)), None) or _kind(text, before)
        found.append(names.index(name))
        before = text or before
    return np.array(found, np.int8), names


def _kind(text: str, before: str) -> str:
    word = text.strip()
    if not text:  # a part of a character
        return "rest of a word"
    if not word or END_OF_TEXT.fullmatch(word):
        return "whitespace"
    if re.fullmatch(r"[\W_]+", word):
        return "punctuation"
    if re.fullmatch(r"\d+", word):
        return "digit"
    if not text[0].isspace() and re.search(r"\w$", before):
        return "rest of a word"
    if FUNCTION_WORDS.fullmatch(word):
        return "function word"
    return "capitalised" if word[0].isupper() else "word"


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"kinds: {name}: {pattern!r} is not a regular expression ({error})") from None

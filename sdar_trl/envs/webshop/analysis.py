"""The words a text is searched by, as Lucene's English analyser finds them."""

import re
from functools import lru_cache

import regex
import Stemmer


# Lucene's English stop words
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
# Unicode's word boundaries (UAX 29): a point or an apostrophe stays inside a word, a comma inside a number. The second
# alternative passes over underscores of no word in one go: they are no word, but there may be thousands of them.
ASCII_WORD = re.compile(r"(_*[a-z0-9](?:[a-z0-9_]|(?<=[a-z])[:.'](?=[a-z])|(?<=[0-9])[.,;'](?=[0-9]))*)|_+")


def _unicode_word() -> regex.Pattern:
    ignored = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
    letter = rf"(?:[[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]--[\p{{LB=SA}}\p{{Sk}}]]{ignored})"
    digit = rf"(?:\p{{WB=Numeric}}{ignored})"
    katakana = rf"(?:\p{{WB=Katakana}}{ignored})"
    joiner = rf"(?:\p{{WB=ExtendNumLet}}{ignored})"
    in_word = rf"(?:[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{ignored})"
    in_number = rf"(?:[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{ignored})"
    word = rf"(?:{letter}(?:{in_word}?{letter})*+|{digit}(?:{in_number}?{digit})*+)++"
    run = rf"(?:{katakana}++|{word})"
    # the ranges were pictographs in the Unicode of Lucene 8
    pictograph = rf"[\p{{Extended_Pictographic}}\u2605\u2607-\u2612\u2616-\u2685\u2690-\u2705\u2763-\u2767]{ignored}"
    alone = rf"[\p{{Han}}\p{{Hiragana}}]{ignored}|{pictograph}(?:(?<=\u200d){pictograph})*+"
    word = rf"{joiner}*+(?:{run}(?:{joiner}++{run})*+){joiner}*+|\p{{LB=SA}}++|{alone}"
    return regex.compile(rf"(?V1)({word})|{joiner}++")


# Porter's measure is above 0: a vowel, or a y after a consonant, with a consonant somewhere behind it.
HAS_SYLLABLE = regex.compile(r"(?:[^aeiouy]|(?<![^aeiou])y)*+(?:[aeiou]|(?<=[^aeiou])y)++(?:[^aeiouy]|(?<=[aeiou])y)")
UNICODE_WORD = _unicode_word()
STEMMER = Stemmer.Stemmer("porter")


def words(text: str) -> list[str]:
    """
    The words of a text: split by Unicode's rules, without possessives and stop words, stemmed.

    Args:
        text (`str`):
            The text, in lower case.

    Returns:
        `list[str]`: the words, in order, with repetitions.
    """
    found = (ASCII_WORD if text.isascii() else UNICODE_WORD).findall(text)
    return [word for word in map(_normalize, found) if word]


@lru_cache(maxsize=2**20)
def _normalize(word: str) -> str:
    if word.endswith(("'s", "’s", "＇s")):
        word = word[:-2]
    return "" if word in STOP_WORDS else stem(word)


def stem(word: str) -> str:
    """Porter's stem as Lucene has it, which in three places goes beyond the published algorithm that Snowball has."""
    if len(word) < 3:
        return word
    result = STEMMER.stemWord(word)
    if result.endswith("bli") and HAS_SYLLABLE.match(result[:-3]):  # -bly, not only -ably
        return STEMMER.stemWord(result[:-1] + "e")
    if result.endswith("logi") and HAS_SYLLABLE.match(result[:-4]):  # -logy
        return result[:-1]
    if result.endswith(("cc", "hh", "jj", "kk", "qq", "vv", "ww", "xx")) and word.endswith(("ed", "ing")):  # trekking
        return result[:-1]
    return result

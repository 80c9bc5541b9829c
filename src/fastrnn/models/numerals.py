"""Numbers in English and German words: a translation that can be checked exactly."""

from __future__ import annotations

from collections.abc import Callable

from fastrnn import validation

GREATEST = 999_999
ENGLISH = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
ENGLISH_TENS = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
GERMAN = [
    "null", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf",
    "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn",
]  # fmt: skip
GERMAN_TENS = [
    "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig",
]  # fmt: skip


def english(number: int) -> str:
    """Return a number in English words, as in "one thousand two hundred thirty-four"."""
    validation.integer("number", number, 0, GREATEST)
    parts = []
    if number >= 1000:
        parts.append(f"{english(number // 1000)} thousand")
    if number % 1000 >= 100:
        parts.append(f"{ENGLISH[number % 1000 // 100]} hundred")
    rest = number % 100
    if rest >= 20:
        parts.append(ENGLISH_TENS[rest // 10 - 2] + (f"-{ENGLISH[rest % 10]}" if rest % 10 else ""))
    elif rest or not parts:
        parts.append(ENGLISH[rest])
    return " ".join(parts)


def german(number: int) -> str:
    """Return a number in German words, as in "eintausendzweihundertvierunddreißig"."""
    validation.integer("number", number, 0, GREATEST)
    words = _german(number)
    return words + "s" if number % 100 == 1 else words


def _german(number: int) -> str:
    """As in front of another word: "ein", not "eins"."""
    words = ""
    if number >= 1000:
        words += _german(number // 1000) + "tausend"
    if number % 1000 >= 100:
        words += GERMAN[number % 1000 // 100] + "hundert"
    rest = number % 100
    if rest >= 20:
        words += (f"{GERMAN[rest % 10]}und" if rest % 10 else "") + GERMAN_TENS[rest // 10 - 2]
    elif rest or not words:
        words += GERMAN[rest]
    return words


LANGUAGES: dict[str, Callable[[int], str]] = {"english": english, "german": german}

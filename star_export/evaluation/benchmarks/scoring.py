"""Official scores of short answers, letters and yes or no."""

import re
from collections.abc import Iterator, Sequence

#: Forms with apostrophes that the VQA evaluation puts back where one apostrophe was left out.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS: dict[str, str] = {}


def _spellings(word: str) -> Iterator[str]:
    """The word with any one of its apostrophes left out."""
    return (word[: mark.start()] + word[mark.end() :] for mark in re.finditer("'", word))


_CONTRACTIONS |= {bare: word for word in _CONTRACTED.split() for bare in _spellings(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # as the official table has it


def vqa_words(text: str) -> str:
    """A text without punctuation and articles, with digits for numbers, as VQA's evaluation compares it."""
    joined, kept = re.search(r"\d,\d", text) is not None, text
    for mark in _PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if joined or apart else " ")
    kept = re.sub(r"\.(?!\d)", "", kept)
    words = [_NUMBERS.get(word, word) for word in kept.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def submitted(answer: str) -> str:
    """An answer as LLaVA-1.5 sends it to EvalAI, and as TextVQA's evaluation compares it."""
    plain = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_words(re.sub(r"[\n\t]", " ", plain).strip())


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean, over the subsets that leave one reference out, of ``min(1, equal references / 3)``."""
    equal = [reference == answer for reference in references]
    return sum(min(1, (sum(equal) - one) / 3) for one in equal) / len(equal)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA's official score of a submitted answer: words are evened out where the references differ."""
    found = submitted(answer)
    given = [re.sub(r"[\n\t]", " ", reference).strip() for reference in references]
    if len(set(given)) > 1:
        found, given = vqa_words(found), [vqa_words(reference) for reference in given]
    return soft_accuracy(found, given)


def letter(answer: str, *, letters: str) -> str | None:
    """The letter that an answer is, begins with (``B. a cat``) or names (``The answer is B.``), or None."""
    said = answer.strip()
    first = said[1:] == "" or said[1:3] == ". "
    named = [said[:1]] if first else re.findall(r"The answer is ([A-Z]).", said)
    return named[0] if len(named) == 1 and named[0] in tuple(letters) else None


def f1(*, true: int, false: int, missed: int) -> float:
    """F1 of true positives, false positives and missed positives; 0 where there are no true ones."""
    return 2 * true / (2 * true + false + missed) if true else 0.0

"""Why an answer is not right, as far as its form tells: the words by which failures are grouped.

Rules that can be read, and no model: each detector is one function with its limits, and a cause that none of them sees
is `wrong`. In this order: a Call that failed, an answer that is right inside a wrapping, a refusal, one that was cut
off, one that cannot be read, another language, another label, a length that is far off, and what is left.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

FORMAT, REFUSAL, LENGTH, LANGUAGE, LABEL, WRONG, SCORER, FAILED = (
    "format", "refusal", "length", "language", "label", "wrong", "scorer", "failed",
)  # fmt: skip
"""`failed`: the Call gave no answer at all; `scorer`: the scorer failed. A user's scorer may say words of its own."""

REFUSAL_CHARS = 240
"""A refusal says so at its start; later in a text the same words are mostly quoted or part of advice."""
CUT_OFF = ("length", "max_tokens")
"""Finish reasons of answers that reached their limit."""
FILTERED = ("content_filter", "refusal")
"""Finish reasons of answers that were withheld."""
LETTERS_MIN = 12
"""Fewer letters tell no script."""
SCRIPT_SHARE = 0.6
"""Of the letters, for a text to be of one script."""
WORDS_MIN = 8
"""Fewer words tell no language."""
STOPWORD_SHARE = 0.15
"""Of the words, for a text to be of one language; running text has 30 to 50 %."""
STOPWORD_LEAD = 1.5
"""By how much the first language must lead, as neighbours share words."""
LENGTH_FACTOR = 4
LENGTH_CHARS = 40
"""An answer is far off in length where it is this many times and this many characters beyond what was expected."""
LABEL_CHARS = 40
LABEL_WORDS = 3
"""What is longer is a text and no label."""

REFUSALS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "i can't help with", "i cannot help with", "i can't assist", "i cannot assist", "i'm unable to",
        "i am unable to", "i'm not able to", "i am not able to", "i can't provide", "i cannot provide",
        "i won't be able to", "i must decline", "i have to decline", "i'm sorry, but i can't",
        "i'm sorry, but i cannot", "sorry, i can't", "i cannot comply", "i can't comply", "i cannot fulfill",
        "i can't fulfill", "i cannot answer", "i can't answer", "i'm not comfortable", "as an ai language model, i",
        "as an ai, i can",
    ),
    "de": (
        "ich kann dabei nicht helfen", "ich kann ihnen dabei nicht", "ich kann dir dabei nicht",
        "ich kann ihnen nicht helfen", "ich kann diese anfrage nicht", "dabei kann ich nicht helfen",
        "dabei kann ich ihnen nicht", "es tut mir leid, aber ich kann", "tut mir leid, ich kann",
        "ich bin nicht in der lage", "das kann ich nicht beantworten",
    ),
    "fr": (
        "je ne peux pas vous aider", "je ne peux pas t'aider", "je ne peux pas repondre", "je ne peux pas fournir",
        "je ne suis pas en mesure", "je suis desole, mais je ne peux", "desole, je ne peux",
        "je regrette, mais je ne peux",
    ),
    "es": (
        "no puedo ayudar", "lo siento, pero no puedo", "lo siento, no puedo", "no me es posible",
        "no puedo proporcionar", "no puedo responder", "no estoy en condiciones de",
    ),
    "it": (
        "non posso aiutar", "mi dispiace, ma non posso", "mi dispiace, non posso", "non sono in grado di",
        "non posso fornire", "non posso rispondere",
    ),
    "pt": (
        "nao posso ajudar", "desculpe, mas nao posso", "lamento, mas nao posso", "nao consigo ajudar",
        "nao sou capaz de", "nao posso fornecer",
    ),
    "nl": (
        "ik kan je daar niet", "ik kan u daar niet", "daar kan ik niet mee helpen", "het spijt me, maar ik kan",
        "sorry, maar ik kan", "ik ben niet in staat",
    ),
    "pl": ("nie moge pomoc", "przykro mi, ale nie moge", "przepraszam, ale nie moge", "nie jestem w stanie"),
    "ru": ("я не могу помочь", "извините, но я не могу", "к сожалению, я не могу", "я не могу ответить"),
    "ja": ("申し訳ありませんが", "申し訳ございませんが", "お手伝いできません", "お答えできません"),
    "zh": ("抱歉,我无法", "抱歉,我不能", "对不起,我无法", "对不起,我不能", "我无法提供", "我不能提供", "我无法回答"),
    "ko": ("죄송하지만", "도와드릴 수 없", "답변할 수 없"),
}  # fmt: skip
"""Phrases of refusals by language, as `_plain` leaves them: small letters, no accents, plain apostrophes and commas."""

STOPWORDS: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the and of to is in that it was for on are with as be this have you not at from they",
        "de": "der die und das ist nicht ein eine zu den mit sich auf fur dem auch es sie ich wir von im",
        "fr": "le la les et des est une que pas pour dans qui sur vous il nous avec au ce du je sont",
        "es": "el la los las y que es una por con para no se del al como su esta lo mas pero muy",
        "it": "il che di la e non un una per sono con del della gli le si come questo anche piu al",
        "pt": "o que e de do da em um uma para com nao os as se por mais no na como voce ao foi",
        "nl": "de het een en van is dat niet op te zijn voor met die in ik je er aan ook maar om",
    }.items()
}
"""Frequent short words that tell a language, without accents."""

_SCRIPTS = (
    ("latin", 0x41, 0x24F), ("greek", 0x370, 0x3FF), ("cyrillic", 0x400, 0x52F), ("hebrew", 0x590, 0x5FF),
    ("arabic", 0x600, 0x6FF), ("devanagari", 0x900, 0x97F), ("thai", 0xE00, 0xE7F), ("kana", 0x3040, 0x30FF),
    ("han", 0x3400, 0x9FFF), ("hangul", 0xAC00, 0xD7AF),
)  # fmt: skip
SAMPLE_CHARS = 4_000
"""Of a text, for its language: more does not tell more."""
_WORD = re.compile(r"[^\W\d_]+")


def is_refusal(text: str, finish_reason: str = "") -> bool:
    """Whether an answer declines to answer, by its finish reason or by how it begins."""
    if finish_reason in FILTERED:
        return True
    start = _plain(text[:REFUSAL_CHARS])
    return any(phrase in start for phrases in REFUSALS.values() for phrase in phrases)


def is_cut_off(finish_reason: str) -> bool:
    """Whether an answer ended because it reached its limit."""
    return finish_reason in CUT_OFF


def language_of(text: str) -> str:
    """A script (`cyrillic`) or, in Latin letters, a language (`de`); empty where too little tells."""
    script = script_of(text)
    if script != "latin":
        return script
    words = _WORD.findall(_plain(text[:SAMPLE_CHARS]))
    if len(words) < WORDS_MIN:
        return ""
    hits = Counter({name: sum(one in known for one in words) for name, known in STOPWORDS.items()})
    (first, most), (_, second) = hits.most_common(2)
    return first if most >= STOPWORD_SHARE * len(words) and most >= STOPWORD_LEAD * second else ""


def script_of(text: str) -> str:
    """The script of most of a text's letters; empty where there are few, or no script has most of them."""
    letters = [ord(one) for one in text[:SAMPLE_CHARS] if one.isalpha()]
    found = Counter(next((name for name, low, high in _SCRIPTS if low <= one <= high), "other") for one in letters)
    if found["kana"]:  # Japanese is written in both
        found["kana"] += found.pop("han", 0)
    dense = found["han"] + found["kana"] + found["hangul"]
    if len(letters) + 2 * dense < LETTERS_MIN:
        return ""
    name, count = found.most_common(1)[0]
    return name if count >= SCRIPT_SHARE * len(letters) else ""


def is_other_language(text: str, reference: str) -> bool:
    """Whether two texts are in different scripts or languages, where both tell theirs."""
    scripts = script_of(text), script_of(reference)
    if all(scripts) and scripts[0] != scripts[1]:
        return True
    seen, wanted = language_of(text), language_of(reference)
    if not seen or not wanted:
        return False
    return seen != wanted


def is_far_off_length(text: str, expected: str) -> bool:
    """Whether an answer is several times as long as what was expected, or a small part of it."""
    short, long = sorted((len(text), len(expected)))
    return bool(short) and long > LENGTH_FACTOR * short and long > short + LENGTH_CHARS


def is_label(value: Any) -> bool:
    """Whether a value is one of a few: a short text, or true and false."""
    if isinstance(value, bool):
        return True
    return isinstance(value, str) and 0 < len(value) <= LABEL_CHARS and len(value.split()) <= LABEL_WORDS


def of_failed_call(text: str, finish_reason: str) -> str:
    """Why a Call gave no usable answer; text: what the model said, where anything came."""
    if is_refusal(text, finish_reason):
        return REFUSAL
    if is_cut_off(finish_reason):
        return LENGTH
    return FORMAT if text.strip() else FAILED


def of_wrong(text: str, value: Any, expected: Any, row: Mapping[str, Any], finish_reason: str) -> str:
    """Why an answer that was read is not right; its wrappings are looked at before."""
    wanted = expected if isinstance(expected, str) else ""
    said = value if isinstance(value, str) else text
    if is_refusal(said, finish_reason) and not is_refusal(wanted):
        return REFUSAL
    if is_cut_off(finish_reason):
        return LENGTH
    if is_other_language(said, wanted if script_of(wanted) else _longest(row)):
        return LANGUAGE
    if is_label(value) and is_label(expected):
        return LABEL
    if wanted and isinstance(value, str) and is_far_off_length(value, wanted):
        return LENGTH
    return WRONG


def _longest(row: Mapping[str, Any]) -> str:
    return max((one for one in row.values() if isinstance(one, str)), key=len, default="")


def _plain(text: str) -> str:
    """Small letters without accents, with plain apostrophes, commas and single spaces; other scripts as they are."""
    text = text.replace("\u2019", "'").replace("\uff0c", ",").replace("\u3001", ",")
    kept = "".join(one for one in unicodedata.normalize("NFD", text) if not ("\u0300" <= one <= "\u036f"))
    return " ".join(unicodedata.normalize("NFC", kept).casefold().replace("\u00df", "ss").split())

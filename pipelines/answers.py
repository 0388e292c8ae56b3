"""What an engine answered, and whether it will do as a caption."""

import re
from dataclasses import dataclass

MIN_WORDS = 2  # of an answer that ended by itself
_REPEATED = 4  # times that the same words may follow themselves
_LEAD = re.compile(
    r"^(?:sure[,!.:]?\s+|certainly[,!.:]?\s+)?"
    r"(?:here is [^:.]{0,60}[:.]\s+)?"
    r"(?:in (?:the|this) (?:image|picture|photo|photograph|scene),?\s+(?:we (?:can )?see\s+|there (?:is|are)\s+)?"
    r"|(?:the|this) (?:image|picture|photo|photograph|scene) (?:shows|depicts|features|captures|displays|presents"
    r"|portrays|contains|illustrates|is of)(?: us)?(?: with)?[:,]?(?:\s+|$))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """`reason`: stop, length, or failed:CLASS without a text."""

    text: str | None
    reason: str
    tokens: int


def check(answer: Answer) -> tuple[str | None, str]:
    """(caption, finish reason): without boilerplate in front; failed where it is empty, too short, or goes in circles.

    A caption is what a picture is generated from, and nobody asks for "the image shows".
    """
    if answer.text is None:
        return None, answer.reason
    text = without_lead(answer.text)
    if not text:
        return None, "failed:empty_caption"
    if repeats(text):
        return None, "failed:repetition"
    if answer.reason == "stop" and len(text.split()) < MIN_WORDS:
        return None, "failed:short_caption"
    return text, answer.reason


def without_lead(text: str) -> str:
    """The text from where it speaks of the picture's content, with a capital if it had one."""
    text = text.strip()
    rest = _LEAD.sub("", text)
    return rest[:1].upper() + rest[1:] if rest != text and text[:1].isupper() else rest


def repeats(text: str) -> bool:
    """Do 2 to 12 words follow themselves more than `_REPEATED` times?"""
    words = text.casefold().split()
    for size in range(2, 13):
        run = 0
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            if run >= size * _REPEATED:
                return True
    return False

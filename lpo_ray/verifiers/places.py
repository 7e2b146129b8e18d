r"""Where a text puts its answer: in a box, in ``<answer>``, after ``####``, or after "the answer is". Stdlib only.

The same function finds the answer of a response and of a data set's solution. A box is ``\boxed{...}``, ``\fbox{...}``,
or ``\boxed 5``. The last box counts, with those that are joined to it by commas, "and" or "or", which are one list. A
last box that is not closed was cut off: nothing before it counts.
"""

from __future__ import annotations

import json
import re

OPEN, CLOSE = "<answer>", "</answer>"
MAX_CHARACTERS = 1000
"""length of an answer; longer ones are not looked at, so that no response can cost time"""
MAX_BOXES = 12
"""boxes that are read as one list"""
MAX_LINE = 500
"""characters after "answer is" that are looked at"""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s{0,9}")
_BRACE = re.compile(r"\\[{}\\]|[{}]")
_UNBRACED = re.compile(r"(-?[0-9][0-9.,]{0,40}(?<![.,])|\\?[a-zA-Z]+)|")
_UNBRACED_TO_END_OF_MATH = re.compile(r"[^$\n{}]{1,100}(?=\$)")
_JOINED = re.compile(r"\s*\$?\s*(?:[,;]|,?\s*and|,?\s*or)\s*\$?\s*")
_OR = re.compile(r"\bor\b")
_MARKED = re.compile(r"####[ \t]*([^\n#]{1,200})(?=\n|\Z)")
_SAID = re.compile(
    r"answer\*{0,2}(?:\s+(?:is|equals)\b|\s*[:=])[ \t*]*(?:[:=][ \t*]*)?|#{1,6} *(?:final )?answer[ *]*(?=\n)"
    r"|\banswer\*\*[ \t]*(?=\n)|答案(?:是|为|：|:)[：: \t]*",
    re.IGNORECASE,
)
_LEAD = re.compile(r"(?:therefore|thus|hence|simply|clearly|just|equal to|given by)\b[,: ]*", re.IGNORECASE)
_END = re.compile(r"\.(?=\s|\*|$)|。|\n|[,;]? *\b(?:because|since|which|so that|as required|as desired|as claimed)\b")
_TRAILER = re.compile(r",\s*(?:as|so|because|since|which|where|and so|and therefore|and thus|therefore|thus)\b.*")


def last_box(text: str) -> str | None:
    """Return the content of the last box; None without one that is closed within MAX_CHARACTERS."""
    found = _last_box(text, len(text))
    return None if found is None else found[1]


def last_box_at(text: str) -> int:
    """Return where the last box begins; -1 without one."""
    return max((text.rfind(name) for name in ("\\boxed", "\\fbox")), default=-1)


def count_boxes(text: str) -> int:
    """Count the boxes that begin in ``text``."""
    return sum(1 for _ in _BOX.finditer(text))


def boxed_answer(text: str) -> str | None:
    """Return the content of the last box and of those that are joined to it; None when it is not closed."""
    found = _last_box(text, len(text))
    if found is None:
        return None
    contents, start, joint = [found[1]], found[0], ", "
    while len(contents) < MAX_BOXES:
        before = _last_box(text, start)
        if before is None:
            break
        between = text[before[2] : start]
        if len(between) > 20 or not _JOINED.fullmatch(between):
            break
        joint = " or " if _OR.search(between) else joint
        contents.append(before[1])
        start = before[0]
    if len(contents) > 1 and not all(content.strip() for content in contents):
        return None
    return joint.join(reversed(contents))


def _last_box(text: str, end: int) -> tuple[int, str, int] | None:
    """Return where the last box before ``end`` begins, its content, and where it ends."""
    start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
    opening = _BOX.match(text, start) if start >= 0 else None
    if opening is None:
        return None
    at = opening.end()
    if text[at : at + 1] != "{":
        bare = _UNBRACED_TO_END_OF_MATH.match(text, at, end) or _UNBRACED.match(text, at, end)
        return (start, bare[0].strip(), bare.end()) if bare and bare[0].strip() else None
    depth = 0
    for brace in _BRACE.finditer(text, at, min(end, at + MAX_CHARACTERS + 2)):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return start, text[at + 1 : brace.start()], brace.end()
    return None


def last_answer(text: str) -> str | None:
    """Return what stands in the last closed ``<answer>...</answer>``; None without one."""
    end = text.rfind(CLOSE)
    start = text.rfind(OPEN, 0, end) if end >= 0 else -1
    return text[start + len(OPEN) : end] if start >= 0 else None


def answered(text: str) -> str:
    """Return what stands in the last closed pair of tags, or else the whole text; without spaces around it."""
    found = last_answer(text)
    return (text if found is None else found).strip()


def last_said(text: str) -> tuple[int, str] | None:
    """Return the line after the last "answer is" or "answer:" with something after it, and its place."""
    for said in reversed(list(_SAID.finditer(text))):
        rest = text[said.end() : said.end() + MAX_LINE].lstrip("*: \t\n")
        if rest.startswith(("$$", "\\[")):
            rest = rest[:2] + rest[2:].lstrip().replace("\n", " ", 1)
        line = rest.partition("\n")[0].strip()
        if line:
            return said.start(), line
    return None


def unquoted(answer: str) -> str:
    r"""Return an answer that is JSON of a list of texts without what JSON adds: there ``\frac`` has two backslashes.

    One that decodes to control characters was not written as JSON, such as ``["\frac{1}{2}"]``, and stays.
    """
    if not answer.lstrip().startswith("["):
        return answer
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return answer
    if not isinstance(found, list) or not all(isinstance(part, str) and part.isprintable() for part in found):
        return answer
    quoted = ", ".join(f'"{part}"' for part in found)
    return found[0] if len(found) == 1 else f"[{quoted}]"


def answer_in(text: str) -> str | None:
    """Return the answer that ``text`` gives, without what is around it; None when it gives none.

    A box or ``<answer>`` counts before what is said in words, the later of the two when there are both; so does
    ``####`` when its line is the last.
    """
    boxed_at = last_box_at(text)
    tagged = last_answer(text)
    tagged_at = text.rfind(OPEN, 0, text.rfind(CLOSE)) if tagged is not None else -1
    marked = _last_marked(text)
    if boxed_at > tagged_at:
        if marked is not None and marked[0] > boxed_at and marked[2]:
            return marked[1]
        return boxed_answer(text)
    if tagged is not None:
        if len(tagged) > MAX_CHARACTERS:
            return None
        said = last_said(tagged)
        return sentence(said[1]) if said is not None else tagged.strip()
    said = last_said(text)
    if marked is not None and (marked[2] or said is None or marked[0] > said[0]):
        return marked[1]
    return None if said is None else sentence(said[1])


def _last_marked(text: str) -> tuple[int, str, bool] | None:
    """Return the place of the last ``####``, the rest of its line, and whether that line is the last."""
    at = text.rfind("####")
    found = _MARKED.match(text, at) if at >= 0 and text[at - 1 : at] != "#" else None
    if found is None or not found[1].strip():
        return None
    return at, found[1].strip(), not text[found.end() :].strip()


def sentence(line: str) -> str:
    """Return the part of a line that names the answer: up to the end of its sentence, without a reason."""
    line = _LEAD.sub("", line, count=1)
    line = _TRAILER.sub("", line)
    ends = _END.search(line)
    return (line if ends is None else line[: ends.start()]).strip().strip("*").strip()

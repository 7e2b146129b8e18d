"""Where the program stands in a response, and the code in a prompt that it goes on with. Texts only: what a policy
wrote is never parsed outside the sandbox.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*\{?([\w+-]*)([^\n]*)$", re.MULTILINE)
_PYTHON = ("python", "python3", "py", "py3", "cpython", "pypy", "pypy3")
_READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0\b|\bfileinput\b|\bos\.read\s*\(\s*0\b")
_PART_OF_CODE = re.compile(r"\s|$|#|@|(import|from|def|class|async def)\s|[A-Za-z_]\w*\s*[:=]|[)\]}]")
_DEFINITION = re.compile(r"^(import|from|def|async[ \t]+def|class)[ \t]", re.MULTILINE)


def program_of(response: str, names: Collection[str] = (), given: str = "", *, reads: bool = False) -> str:
    """Find the Python source in a response: the last block that defines one of ``names`` or, with ``reads``, reads its
    input; or else the last one. A usage example after the solution is none. ``given``: code of the prompt, whose last
    function a response without a definition goes on with.
    """
    answer = _after_thoughts(response)
    found = blocks(answer)
    python = [text for language, text in found if language in _PYTHON]
    candidates = python or [text for _, text in found] or [answer]
    is_it = [text for text in candidates if any(defines(text, name) for name in names)]
    if reads:
        is_it = [text for text in candidates if _READS.search(text)]
    chosen = (is_it or candidates)[-1]
    return _completed(given, chosen) if not is_it and _begins(given, names) else chosen


def blocks(text: str) -> list[tuple[str, str]]:
    """List the fenced blocks of Markdown, as language and content without the fence's indentation. A block that is not
    closed goes to the end.
    """
    found: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[2].startswith(opened[2]) and not fence[3] and not fence[4].strip():
            found.append(_block(opened, text[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        found.append(_block(opened, text[opened.end() + 1 :]))
    return found


def defines(code: str, name: str) -> bool:
    """Tell whether a text looks as if it defined ``name``: as a function, method or class, by a value or an import."""
    word = re.escape(name)
    return bool(
        re.search(
            rf"^[ \t]*(async[ \t]+)?(def|class)[ \t]+{word}\b|^{word}[ \t]*(:[^=\n]+)?=(?!=)"
            rf"|^[ \t]*(from|import)\b[^\n]*\b{word}\b",
            code,
            re.MULTILINE,
        )
    )


def code_before(prompt: str, entry_point: str) -> str:
    """Return the code of a prompt with the beginning of ``entry_point`` in it, as HumanEval's have it, or a prompt that
    is nothing but code; "" without one.
    """
    name = entry_point.rpartition(".")[2]
    for text in [*(text for _, text in reversed(blocks(prompt))), prompt]:
        for code in _around(text, name):
            if _parses(code):
                return code
    return prompt if _DEFINITION.search(prompt) and _parses(prompt) else ""


def _around(text: str, name: str) -> list[str]:
    """Return the lines that look like code around the definition of a function, from each statement on that they may
    begin with.
    """
    lines = text.splitlines()
    begin = re.compile(rf"(async[ \t]+)?def[ \t]+{re.escape(name)}[ \t]*\(")
    at = next((number for number, line in enumerate(lines) if begin.match(line)), None)
    if at is None:
        return []
    first, end = at, at + 1
    while end < len(lines) and _PART_OF_CODE.match(lines[end]):
        end += 1
    while first > 0 and _PART_OF_CODE.match(lines[first - 1]):
        first -= 1
    starts = [number for number in range(first, at + 1) if number == first or _DEFINITION.match(lines[number])]
    return ["\n".join(lines[start:end]) + "\n" for start in starts]


def _begins(given: str, names: Collection[str]) -> bool:
    """Tell code that ends with the beginning of a function, so that a solution in a prompt solves nothing."""
    last = ast.parse(given).body[-1:]
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name in names
        and all(
            isinstance(part, ast.Pass)
            or (isinstance(getattr(part, "value", None), ast.Constant) and isinstance(part, ast.Expr))
            for part in node.body
        )
        for node in last
    )


def _completed(given: str, body: str) -> str:
    """Return the prompt's code and the function's body, to the first line that is not part of it, as HumanEval has it.
    A first line that lost its indentation gets one.
    """
    lines = body.strip("\n").splitlines()
    if lines and not lines[0][:1].isspace():
        rest = [line for line in lines[1:] if line.strip()]
        only_first = rest and rest[0][:1].isspace() and not lines[0].rstrip().endswith(":")
        lines = [f"    {lines[0]}", *lines[1:]] if only_first else [f"    {line}" for line in lines]
    end = next((number for number, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "\n".join([given.rstrip("\n"), *lines[:end]]) + "\n"


def _after_thoughts(response: str) -> str:
    """Return what comes after the thoughts; nothing of a response that ends in them."""
    _, closed, after = response.rpartition("</think>")
    if closed:
        return after
    return "" if response.lstrip().startswith("<think>") else response


def _block(fence: re.Match[str], content: str) -> tuple[str, str]:
    width = len(fence[1].expandtabs(4))
    if width:
        content = re.sub(rf"^[ \t]{{1,{width}}}", "", content, flags=re.MULTILINE)
    return fence[3].lower(), content


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

"""Tool calls in a reply's text, as families of models write them. Standard library only: it runs in child processes.

A call that cannot be read stays one: its arguments are the text as it stands, and whoever runs it says so to the model.
What a model writes in the form of a *result* is text like any other.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from lpo_ray.verifiers.thinking import after_thinking

MAX_CALLS = 16
"""of one reply; more are not looked at"""
LONGEST_CALL = 100_000
"""characters of a call that are read"""
DEEPEST = 64
"""lists and mappings within each other in a call that is read: much deeper ones no JSON library can write again"""
ONE_ARGUMENT = ""
"""name of the argument of a call that is nothing but a text, to the only tool there is"""
ToolCall = dict[str, Any]
"""in OpenAI's form: {"type": "function", "id": ..., "function": {"name": ..., "arguments": ...}}"""
_BEGUN, _ENDED = re.compile(r'\{\s*"name"\s*:'), re.compile(r"<\|(?:eom|eot)_id\|>\s*\Z")
"""of a call in Llama's JSON"""
_JSON_NAMES = {"true": "True", "false": "False", "null": "None"}
Found = tuple[str, list[ToolCall]]
"""text before the first call, and the calls"""


def parse(parser: str, text: str) -> Found:
    """Find the calls in a reply by a row of PARSERS. Calls within thinking are none. Never raises."""
    said = after_thinking(text)
    before, calls = PARSERS[parser](said)
    return before.strip() if calls else text, calls[:MAX_CALLS]


def parser_for(template: str | None) -> str:
    """Choose the parser of a chat template's text; None: messages are plain text, calls stand in brackets."""
    if template is None:
        return "brackets"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_tag|>" in template or ("ipython" in template and '"parameters"' in template):
        return "llama3_json"
    if re.search(r"\[func_name1\(|\[func_name\(|pythonic", template):
        return "pythonic"
    return "hermes"


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON that a model wrote. Raises ValueError, also for what lies deeper than DEEPEST."""
    value, end = _decoded(text := text.strip())
    if end < len(text):
        raise ValueError(f"{text[end : end + 20]!r} stands behind the JSON")
    return value


def _decoded(text: str, at: int = 0) -> tuple[Any, int]:
    """Read the JSON that begins at a place of ``text``; returns where it ends, too. Raises ValueError."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [item for whole in level for item in _items(whole)]
    if level:
        raise ValueError(f"the JSON is nested more than {DEEPEST} deep")
    return value, end


def _items(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _call(name: object, arguments: object, number: int) -> ToolCall:
    return {
        "type": "function",
        "id": f"call{number:05d}",  # 9 letters and digits, as Mistral's templates want them
        "function": {"name": name if isinstance(name, str) else "", "arguments": arguments},
    }


def _of_json(text: str, number: int) -> list[ToolCall]:
    """Read one call, or a list of them, from JSON. What is none becomes a call of no name with its text."""
    try:
        value = read_json(text[:LONGEST_CALL])
    except ValueError:
        return [_call("", text[:LONGEST_CALL].strip(), number)]
    calls = []
    for item in value if isinstance(value, list) else [value]:
        place = number + len(calls)
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            calls.append(_call("", json.dumps(item), place))
            continue
        arguments = item.get("arguments", item.get("parameters", {}))
        calls.append(_call(item["name"], arguments, place))
    return calls


def _hermes(text: str) -> Found:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen, SmolLM."""
    before, opened, rest = text.partition("<tool_call>")
    if not opened:
        return text, []
    calls: list[ToolCall] = []
    for part in rest.split("<tool_call>")[:MAX_CALLS]:
        calls += _of_json(part.partition("</tool_call>")[0], len(calls))
    return before, calls


def _llama3_json(text: str) -> Found:
    """{"name": ..., "parameters": {...}} wherever it stands, also behind <|python_tag|>; several with ; between. JSON
    without both keys is an answer.
    """
    body = text.rpartition("<|python_tag|>")[2] if "<|python_tag|>" in text else text
    before, calls = None, list[ToolCall]()
    at, tries = body.find("{"), 0
    while at >= 0 and len(calls) < MAX_CALLS and tries < 4 * MAX_CALLS:
        tries, end = tries + 1, at + 1
        found: list[ToolCall] = []
        try:
            value, end = _decoded(body, at)
            if isinstance(value, dict) and "name" in value and {"parameters", "arguments"} & set(value):
                found = _of_json(body[at:end], len(calls))
        except ValueError:
            if _BEGUN.match(body, at):
                end = len(body)
                found = _of_json(_ENDED.sub("", body[at:]), len(calls))
        if found and before is None:
            before = body[:at]
        calls += found
        at = body.find("{", end)
    return (text, []) if before is None else ("" if body is not text else before, calls)


def _mistral(text: str) -> Found:
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name{...} of later tokenizers."""
    before, opened, rest = text.partition("[TOOL_CALLS]")
    if not opened:
        return text, []
    if rest.lstrip().startswith(("[", "{")):
        try:
            _, end = _decoded(rest.lstrip())
        except ValueError:
            end = len(rest)
        return before, _of_json(rest.lstrip()[:end], 0)
    calls: list[ToolCall] = []
    for part in rest.split("[TOOL_CALLS]")[:MAX_CALLS]:
        name, brace, arguments = part.partition("{")
        name = name.removesuffix("[ARGS]").strip()
        try:
            value, _ = _decoded(brace + arguments)
        except ValueError:
            value = (brace + arguments)[:LONGEST_CALL].strip()
        calls.append(_call(name, value, len(calls)))
    return before, calls


def _pythonic(text: str) -> Found:
    """[name(key=value), other(key=value)]: Llama 4, OLMo 3, LFM."""
    body = re.sub(r"<\|[a-z_]{1,40}\|>", "", text[:LONGEST_CALL]).strip()
    if not re.match(r"\[\s*[A-Za-z_][\w.]{0,100}\(", body) or not body.endswith("]"):
        return text, []
    try:
        tree = ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", [_call("", body, 0)]
    calls = []
    for node in tree.elts if isinstance(tree, ast.List) else ():
        written = ast.get_source_segment(body, node) or ""  # not unparsed: that fails for what is deep
        if not isinstance(node, ast.Call) or node.args:
            calls.append(_call("", written, len(calls)))
            continue
        name = ast.get_source_segment(body, node.func)
        try:
            arguments = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
            arguments = read_json(json.dumps(arguments)) if None not in arguments else written
        except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
            calls.append(_call(name, written, len(calls)))
            continue
        calls.append(_call(name, arguments, len(calls)))
    return "", calls


def _literal(node: ast.expr) -> Any:  # noqa: ANN401 - any literal
    """Evaluate a literal; true, false and null are those of JSON."""
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in _JSON_NAMES]
    for name in names:
        name.id = _JSON_NAMES[name.id]
    return ast.literal_eval(ast.unparse(node) if names else node)


def _brackets(text: str) -> Found:
    """[12*34]: a text for the only tool, of models that are too small for JSON. The first pair that closes counts."""
    found = re.search(r"\[([^\[\]]{0,1000})\]", text)
    return (text, []) if found is None else (text[: found.start()], [_call("", {ONE_ARGUMENT: found[1]}, 0)])


PARSERS: dict[str, Callable[[str], Found]] = {
    "hermes": _hermes,
    "llama3_json": _llama3_json,
    "mistral": _mistral,
    "pythonic": _pythonic,
    "brackets": _brackets,
}
"""task.tool_parser -> how calls are written; auto: by the chat template's text"""

"""vLLM's own server over an engine that holds no model: protocols, parsers and streams are vLLM's, contexts are ours.

Its ``generate`` asks the session for a turn, and makes of the tokens what vLLM's engine would have made of them: text
by its detokenizer, with stop strings cut off, and tool calls and thinking by its parsers. Whoever asks again gets the
same, streamed or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

from fastapi import FastAPI
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.generate.api_router import init_generate_state
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall, FunctionCall
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.inputs import EngineInput, tokens_input
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.parser import Parser
from vllm.renderers import renderer_from_config
from vllm.renderers.chat_utils import ConversationMessage, parse_chat_messages
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer

from actors.agents.exchange import EXCHANGE, Exchange
from lpo_ray.agents.contexts.asked import Asked, Calls
from lpo_ray.agents.contexts.histories import History, Prompts, Reply
from lpo_ray.agents.endpoint.api_errors import CONTEXT_LENGTH, ApiError, too_long
from lpo_ray.agents.endpoint.sessions import Session
from lpo_ray.agents.environment import Message
from lpo_ray.errors import ConfigError, DataError
from lpo_ray.records import Call, IntArray, Refusal, Turn

VLLM_PARSERS = {"hermes": "hermes", "llama3_json": "llama3_json", "mistral": "mistral", "pythonic": "pythonic"}
"""row of tool_calls.PARSERS -> vLLM's parser of the same form; others find no calls here"""
TEXT_PARTS = frozenset(("text", "input_text", "output_text", "refusal", "thinking"))
CALL_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""letters of a tool call's name: 9 of them, as Mistral's templates want them"""
AnyRequest = ChatCompletionRequest | ResponsesRequest | CompletionRequest

log = logging.getLogger("lpo_ray.worker")


class Answers:
    """Requests in canonical form with their contexts, and the policy's turns as replies."""

    def __init__(
        self,
        prompts: Prompts,
        config: VllmConfig,
        parser: type[Parser] | None,
        tokenizer: Any,  # noqa: ANN401 - vLLM's protocol of tokenizers is not one
        ends: frozenset[int],
    ) -> None:
        """``tokenizer``: vLLM's; ``ends``: tokens that end an answer, beside the special ones."""
        self._prompts, self._model, self._parser = prompts, config.model_config, parser
        self._tokenizer, self._ends = tokenizer, ends
        self._histories = WeakKeyDictionary[Session, History]()

    def place_messages(
        self,
        exchange: Exchange,
        request: AnyRequest,
        messages: Sequence[Any],
        tools: Sequence[Message],
        variables: Mapping[str, Any],
    ) -> list[int]:
        """Find the context of a conversation. Raises ValueError; the exchange has the error that the agent is told."""
        try:
            _check_parts(messages)
            conversation, _, _ = parse_chat_messages(list(messages), self._model, "string")
            if not conversation:
                raise ApiError(400, "the request has no messages; expected at least one", None, "messages")
            asked = Asked(
                [_normal(message) for message in conversation],
                tools=[_schema(tool) for tool in tools],
                variables=self._prompts.variables(variables),
                calls=_calls(request, tools),
                **_limits(request, exchange, self._model.max_model_len),
            )
            return self._placed(exchange, asked)
        except ApiError as error:
            exchange.error = error
            raise ValueError(error.message) from None

    def place_prompt(self, exchange: Exchange, request: CompletionRequest) -> list[int]:
        """Find the context of a text, as ``place_messages``."""
        try:
            prompt = _one_prompt(request.prompt, self._prompts.tokenizer.highest_id)
            return self._placed(
                exchange, Asked(prompt=prompt, calls="none", **_limits(request, exchange, self._model.max_model_len))
            )
        except ApiError as error:
            exchange.error = error
            raise ValueError(error.message) from None

    async def answer(self, exchange: Exchange) -> None:
        """Ask the policy, and put turn and reply into the exchange, or the error."""
        asked, placed, session = exchange.asked, exchange.placed, exchange.session
        assert asked is not None and placed is not None
        request = asked.to_bytes()
        try:
            outcome = await session.ask(
                Call(0, placed.context_ids, request, asked.max_tokens, asked.stop, placed.began, asked.author)
            )
        except ApiError as error:
            exchange.error = error
            return
        if isinstance(outcome.answer, Refusal):
            code = CONTEXT_LENGTH if outcome.answer.kind == "tokens" else "session_limit"
            exchange.error = ApiError(400 if outcome.answer.kind == "tokens" else 403, outcome.answer.reason, code)
            return
        turn = outcome.answer
        reply = self._reply(asked, request, placed.context_ids, turn)
        if outcome.call is not None:
            self._history(session).remember(asked, outcome.call.context_ids, turn.token_ids, reply, placed.parent)
        exchange.turn, exchange.reply = turn, reply

    def _placed(self, exchange: Exchange, asked: Asked) -> list[int]:
        try:
            exchange.asked, exchange.placed = asked, self._history(exchange.session).place(asked)
        except DataError as error:
            raise ApiError(400, str(error), None, "messages") from None
        ids = exchange.placed.context_ids.tolist()
        if not ids:
            raise ApiError(400, "the request has no text; expected some", None, "messages")
        if len(ids) >= self._model.max_model_len:
            raise too_long(len(ids), self._model.max_model_len)
        return ids

    def _history(self, session: Session) -> History:
        history = self._histories.get(session)
        if history is None:
            history = self._histories[session] = History(self._prompts)
            for call, turn in ((each.call, each.turn) for each in session.recorded):
                asked = Asked.from_bytes(call.request)
                reply = self._reply(asked, call.request, call.context_ids, turn)
                parent = history.place(asked).parent
                history.remember(asked, call.context_ids, turn.token_ids, reply, parent)
        return history

    def _reply(self, asked: Asked, request: bytes, context_ids: IntArray, turn: Turn) -> Reply:
        """Make of a turn what the agent is given: text, thinking and calls."""
        if self._parser is None:
            text, stop = self._text(context_ids, turn, asked.stop, skip_special=True)
            return Reply(_message(request, None, text, ()), text, stop)
        like = ChatCompletionRequest.model_validate({
            "messages": [{"role": "user", "content": ""}],
            "tools": asked.tools or None,
            "tool_choice": "auto" if asked.tools and asked.calls != "none" else "none",
        })  # fmt: skip
        parser = self._parser(
            self._tokenizer, cast("Any", like.tools), model_config=self._model, chat_template_kwargs={}
        )
        like = cast("ChatCompletionRequest", parser.adjust_request(like))
        text, stop = self._text(context_ids, turn, asked.stop, skip_special=like.skip_special_tokens)
        reasoning, content, calls = None, text, []
        if asked.prompt is None:
            reasoning, content, calls = _parsed(parser, like, text, turn.token_ids.tolist())
        if asked.calls == "one":
            calls = calls[:1]
        return Reply(_message(request, reasoning, content, calls), text, stop)

    def _text(
        self, context_ids: IntArray, turn: Turn, stop: Sequence[str], *, skip_special: bool
    ) -> tuple[str, str | None]:
        """Make the text of a turn as vLLM's engine does, and name the stop string that ended it."""
        ids = turn.token_ids.tolist()
        params = SamplingParams(stop=list(stop), skip_special_tokens=skip_special)
        before = context_ids[-64:].tolist()
        request = EngineCoreRequest("", before, None, params, None, 0.0, None, None, None)
        detokenizer = IncrementalDetokenizer.from_new_request(self._tokenizer, request)
        is_ended = turn.finish_reason == "stop" and bool(ids) and self._is_end(ids[-1])
        found = detokenizer.update(ids, is_ended)
        text = cast("BaseIncrementalDetokenizer", detokenizer).get_next_output_text(finished=True, delta=False)
        return text, found

    def _is_end(self, token: int) -> bool:
        return token in self._ends or self._prompts.tokenizer.is_special(token)


class EngineClient:
    """Engine as vLLM's server sees one, over sessions. It holds no model."""

    errored = is_stopped = False
    is_running = True
    input_processor = None

    def __init__(self, config: VllmConfig, answers: Answers | None = None) -> None:
        self.vllm_config, self.model_config = config, config.model_config
        self.renderer = renderer_from_config(config)
        self.answers = answers

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Let every request in: the gate has looked at it."""

    async def is_tracing_enabled(self) -> bool:
        """Say that nothing is traced."""
        return False

    async def generate(
        self, prompt: Mapping[str, Any], params: SamplingParams, request_id: str, **_: object
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the answer to a request, whole."""
        assert self.answers is not None
        exchange = EXCHANGE.get()
        await self.answers.answer(exchange)
        yield _output(exchange, request_id, params, self.renderer.tokenizer)


class ContextRenderer(OnlineRenderer):
    """Renderer whose contexts are those of the session's history."""

    answers: Answers

    @override
    async def preprocess_chat(
        self, request: Any, messages: list[Any], *args: Any, tool_dicts: list[dict[str, Any]] | None = None,
        **settings: Any,
    ) -> tuple[list[ConversationMessage], list[EngineInput]]:  # fmt: skip
        exchange = EXCHANGE.get(None)
        if exchange is not None:
            variables = self.effective_chat_template_kwargs(request)
            ids = self.answers.place_messages(exchange, request, messages, tool_dicts or (), variables)
            request.kv_transfer_params = {"prompt_token_ids": ids}  # vLLM's way to say what a context is
        return await super().preprocess_chat(request, messages, *args, tool_dicts=tool_dicts, **settings)

    @override
    async def preprocess_completion(self, request: CompletionRequest, *_: Any, **__: Any) -> list[EngineInput]:
        return [tokens_input(self.answers.place_prompt(EXCHANGE.get(), request))]


class _OfExchange:
    """Parser that gives what was made of the answer already, in whichever way it is asked."""

    def parse(self, *_: object, **__: object) -> tuple[str | None, str | None, list[FunctionCall]]:
        """Return thinking, text and calls."""
        reply = EXCHANGE.get().reply
        if reply is None:
            return None, "", []
        message = reply.message
        calls = [
            FunctionCall(
                id=call["id"],
                name=call["function"]["name"],
                arguments=json.dumps(call["function"]["arguments"], ensure_ascii=False),
            )
            for call in message.get("tool_calls", ())
        ]
        return message.get("reasoning"), message["content"] or None, calls

    def parse_delta(self, *_: object, finished: bool, **__: object) -> DeltaMessage | None:
        """Return all of it at once: the answer comes in one piece."""
        reasoning, content, calls = self.parse()
        deltas = [
            DeltaToolCall(
                index=place, id=call.id, type="function",
                function=DeltaFunctionCall(name=call.name, arguments=call.arguments),
            )
            for place, call in enumerate(calls)
        ]  # fmt: skip
        return DeltaMessage(reasoning=reasoning, content=content, tool_calls=deltas) if finished else None


async def make_app(
    model_path: str,
    prompts: Prompts,
    *,
    most_tokens: int,
    model_name: str,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    ends: frozenset[int] = frozenset(),
    trust_remote_code: bool = False,
) -> FastAPI:
    """Make vLLM's server for a model of which only the folder is there.

    ``tool_parser``: a row of tool_calls.PARSERS. ``reasoning_parser``: one of vLLM's. Raises ConfigError for a parser
    that the model's tokenizer cannot be used with.
    """
    config = _config(model_path, most_tokens, model_name, trust_remote_code)
    client = EngineClient(config)
    wanted = ["--model", model_path, "--served-model-name", model_name, "--disable-log-stats"]
    parser_name = VLLM_PARSERS.get(tool_parser or "")
    if parser_name is not None:
        wanted += ["--enable-auto-tool-choice", "--tool-call-parser", parser_name]
    if reasoning_parser is not None:
        wanted += ["--reasoning-parser", reasoning_parser]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(wanted)
    try:
        renderer = ContextRenderer(
            config.model_config, client.renderer, request_logger=None, chat_template=None,
            chat_template_content_format="string", enable_auto_tools=parser_name is not None, tool_parser=parser_name,
            reasoning_parser=reasoning_parser,
        )  # fmt: skip
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"task.tool_parser={tool_parser} or agent.reasoning_parser={reasoning_parser} cannot be used with the "
            f"tokenizer of {model_path}: {error}"
        ) from error
    if renderer.use_harmony:
        raise ConfigError(f"{model_path} is a gpt-oss model, whose messages are no chat template's; agents need one")
    answers = Answers(prompts, config, renderer.parser, client.renderer.tokenizer, ends)
    client.answers = renderer.answers = answers
    return await _assembled(client, renderer, args)


async def _assembled(client: EngineClient, renderer: ContextRenderer, args: Any) -> FastAPI:  # noqa: ANN401
    """Put vLLM's handlers of requests into an app that has their routes and no others."""
    from vllm.entrypoints.anthropic.api_router import attach_router as add_messages
    from vllm.entrypoints.openai.chat_completion.api_router import attach_router as add_chat
    from vllm.entrypoints.openai.completion.api_router import attach_router as add_completions
    from vllm.entrypoints.openai.models.api_router import attach_router as add_models
    from vllm.entrypoints.openai.responses.api_router import attach_router as add_responses

    # it writes a traceback for every request that it does not understand
    logging.getLogger("vllm.entrypoints.anthropic.api_router").setLevel(logging.CRITICAL)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for add in (add_chat, add_completions, add_responses, add_messages, add_models):
        add(app)
    init_exception_handler(app)
    state, engine = app.state, cast("Any", client)
    state.args, state.engine_client, state.vllm_config = args, engine, client.vllm_config
    state.enable_server_load_tracking, state.tool_server, state.online_renderer = False, None, renderer
    names = [BaseModelPath(name=name, model_path=args.model) for name in args.served_model_name]
    state.openai_serving_models = OpenAIServingModels(engine, names)
    await init_generate_state(engine, state, args, None, ("generate",), {})
    for handler, name in (
        (state.openai_serving_chat, "parser_cls"), (state.anthropic_serving_messages, "parser_cls"),
        (state.openai_serving_responses, "parser"),
    ):  # fmt: skip
        found = getattr(handler, name)
        if found is not None:
            setattr(handler, name, type("ReplyParser", (_OfExchange, found), {}))
    return app


def _config(model_path: str, most_tokens: int, model_name: str, trust_remote_code: bool) -> VllmConfig:
    engine_args = EngineArgs(
        model=model_path, tokenizer=model_path, served_model_name=[model_name], generation_config="vllm",
        trust_remote_code=trust_remote_code, enforce_eager=True,
    )  # fmt: skip
    model = engine_args.create_model_config()
    model.max_model_len = most_tokens  # the engines have looked at whether the model has room for it
    model.quantization = cast("Any", None)  # there are no weights
    return VllmConfig(model_config=model)


def _output(exchange: Exchange, request_id: str, params: SamplingParams, tokenizer: Any) -> RequestOutput:  # noqa: ANN401
    """Make vLLM's output of an answer; an empty one in place of an error, which the gate tells."""
    turn, reply, placed = exchange.turn, exchange.reply, exchange.placed
    assert placed is not None
    ids, text, logprobs, finish, stop = [], "", [], "stop", None
    if turn is not None and reply is not None:
        ids, text, finish, stop = turn.token_ids.tolist(), reply.text, turn.finish_reason, reply.stop
        if params.logprobs is not None:
            found = turn.behaviour_logprobs.tolist()
            logprobs = [
                {token: Logprob(value, None, tokenizer.decode([token]))}
                for token, value in zip(ids, found, strict=True)
            ]
    output = CompletionOutput(
        0, text, ids, None, logprobs if params.logprobs is not None else None, finish_reason=finish, stop_reason=stop
    )
    return RequestOutput(request_id, None, placed.context_ids.tolist(), None, [output], True)


def _check_parts(messages: Sequence[Any]) -> None:
    """Raise ApiError for what is no text: nothing here reads pictures, and nothing fetches them."""
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else "text" if isinstance(part, str) else None
            if kind not in TEXT_PARTS or (isinstance(part, Mapping) and "uuid" in part):
                raise ApiError(400, f"a message has content of type {kind!r}; only text is taken", None, "messages")


def _normal(message: Mapping[str, Any]) -> Message:
    """Return a message as chat templates take it, without what is not set."""
    kept = ("role", "content", "name", "tool_call_id", "tool_calls", "reasoning", "reasoning_content")
    return {name: message[name] for name in kept if message.get(name) is not None}


def _schema(tool: Mapping[str, Any]) -> Message:
    """Return a tool's schema as chat templates take it, without what is not set."""
    return {"type": "function", "function": {k: value for k, value in tool["function"].items() if value is not None}}


def _calls(request: AnyRequest, tools: Sequence[Message]) -> Calls:
    if not tools or getattr(request, "tool_choice", None) == "none":
        return "none"
    return "one" if getattr(request, "parallel_tool_calls", True) is False else "many"


def _limits(request: AnyRequest, exchange: Exchange, room: int) -> dict[str, Any]:
    """Return what a request says of the length of its answer, if that is less than there is room for, and its seed."""
    asked = SimpleNamespace(**{name: getattr(request, name, None) for name in (
        "max_completion_tokens", "max_output_tokens", "max_tokens", "stop")})  # fmt: skip
    given = (asked.max_completion_tokens, asked.max_output_tokens, asked.max_tokens)
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    most = next((value for value in given if value is not None), None)
    return {
        "max_tokens": None if most is not None and most >= room else most, "stop": stop, "seed": exchange.seed
    }  # fmt: skip


def _one_prompt(prompt: Any, highest: int) -> str | list[int]:  # noqa: ANN401 - one of vLLM's five types
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(isinstance(each, int) for each in prompt):
        raise ApiError(400, "prompt is not one text, nor one list of token ids", None, "prompt")
    if max(prompt) > highest:
        raise ApiError(400, f"token {max(prompt)} is not in the vocabulary, whose last is {highest}", None, "prompt")
    return prompt


def _parsed(
    parser: Parser, request: ChatCompletionRequest, text: str, ids: list[int]
) -> tuple[str | None, str, list[FunctionCall]]:
    """Find thinking, text and calls. What a parser does not understand, or calls with no object, is text."""
    try:
        reasoning, content, calls = parser.parse(text, request, enable_auto_tools=True, model_output_token_ids=ids)
    except Exception as error:  # noqa: BLE001 - parsers of vLLM's, on whatever a policy writes
        log.warning("vLLM's parser failed at an answer, which is text then: %s: %s", type(error).__name__, error)
        return None, text, []
    if any(_object(call.arguments) is None for call in calls or ()):
        return None, text, []
    return reasoning or None, content or "", calls or []


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(request: bytes, reasoning: str | None, content: str, calls: Sequence[FunctionCall]) -> Message:
    """Make the message of a reply. Its calls are named by the request, so that every reply to it has the same names."""
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls:
        message["tool_calls"] = [
            {
                "type": "function",
                "id": _call_name(request, place),
                "function": {"name": call.name, "arguments": _object(call.arguments)},
            }
            for place, call in enumerate(calls)
        ]
    return message


def _call_name(request: bytes, place: int) -> str:
    digest = hashlib.blake2b(request, digest_size=9, salt=place.to_bytes(4, "big")).digest()
    return "".join(CALL_NAMES[byte % len(CALL_NAMES)] for byte in digest)

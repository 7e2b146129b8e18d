"""The policy's folder, where prompts come from, and how responses are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class WarmupConfig:
    """Recipe of the tiny base policy that is built when model.path is null."""

    steps: int = 220
    """supervised steps on Countdown solutions"""
    batch_size: int = 128
    """problems per step"""
    lr: float = 2e-3
    """peak learning rate, after a warm-up of 50 steps"""
    seed: int = 0
    """seed of the initial weights and of the problems"""
    cache_dir: str | None = None
    """null: $LPO_RAY_CACHE, else ~/.cache/lpo-ray"""


@dataclass
class LoraConfig:
    """Adapter (LoRA, by PEFT) that is trained in place of the policy's weights, which stay as they are."""

    rank: int | None = None
    """rows of each of its matrices; null: no adapter, all weights are trained"""
    alpha: int = 32
    """what an adapter adds to a layer is multiplied by alpha/rank, or with rslora by alpha/sqrt(rank)"""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """last parts of the names of the linear layers that have one, such as [q_proj, v_proj]; [all-linear]: all but the
    output head
    """
    rslora: bool = False
    """scale by the square root of the rank"""
    dropout: float = 0.0
    """refused above 0: log-probs of equal weights would differ, a ratio that is not there"""
    modules_to_save: list[str] = field(default_factory=list)
    """refused: modules trained in full beside the adapter, which vLLM does not serve"""
    path: str | None = None
    """folder of a PEFT adapter to begin with, whose settings are these; null: a new one, which changes nothing yet"""


@dataclass
class ModelConfig:
    """The policy that is trained."""

    path: str | None = None
    """a Hugging Face folder (or hub name); null builds the tiny base policy of `warmup`"""
    dtype: str = "float32"
    """learner parameters: float32 | bfloat16"""
    trust_remote_code: bool = False
    """run the Python code that the model's folder or hub page brings along (auto_map), in learner, engines and
    tokenizer alike; see SECURITY.md"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)


@dataclass
class TaskConfig:
    """Source of the prompts, and what checks the responses."""

    name: str = "countdown"
    """row of lpo_ray.tasks.table.TASKS: countdown | math | code | geometry | token_reversal | reasoning_gym:NAME |
    dataset; or "module:function" that returns a Task
    """
    verifier: str | None = None
    """row of VERIFIERS, "module:function", "file.py:function", https://..., judge, or a weighted sum such as
    "math + 0.2*think_format"; null takes the task's own
    """
    environment: str | None = None
    """what a response is a conversation with: row of ENVIRONMENTS, "path/to/file.py:Name" or "module:Name"; null: there
    is one turn, unless there are tools
    """
    agent: Any = None
    """a program that asks the policy through a chat endpoint, in place of an environment: "path/to/file.py:solve" or
    "module:solve", a function of row and client; or a command, [python, agent.py]
    """
    tools: list[str] = field(default_factory=list)
    """tools that the policy may call in its turns: "python", "calculator", "file.py:function", "module:function" """
    tool_parser: str = "auto"
    """form of a call in the policy's text: row of PARSERS (hermes | llama3_json | ...); auto: by the chat template"""
    template: str = "plain"
    """plain, or chat (the tokenizer's chat template); prompts that are messages go through that in any case"""
    chat_template: str | None = None
    """file with a chat template (Jinja) in place of the tokenizer's"""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """variables of the chat template, such as {enable_thinking: false} of Qwen3"""
    date: str | None = None
    """the day that a chat template is told when it asks, such as 2026-11-30; null: the day on which the run was begun,
    also after a resume on another
    """
    system_prompt: str | None = None
    """system message of conversations that have none; null: as the template has it"""
    prompt_prefix: str = ""
    """text before each prompt; of messages, before the user's last"""
    prompt_suffix: str = ""
    """text after it, likewise"""
    counts: list[int] = field(default_factory=lambda: [3])
    """countdown: how many numbers a problem has"""
    num_train: int | None = None
    """size of the training set (cycled in a new order each epoch); null: all rows, or without end for generators"""
    path: str | None = None
    """data set to train on: a file (.parquet, .jsonl, .json, .csv, .tsv, also .gz), a pattern such as data/*.parquet, a
    folder of shards, several of these with commas between them; or a hub name NAME, NAME#SPLIT, NAME#CONFIG/SPLIT;
    `lpo-ray evaluate` needs heldout_path only
    """
    heldout_path: str | None = None
    """file or data set of the held-out prompts, named as path is; null: none, so evaluation.num_prompts=0"""
    prompt_column: str | None = None
    """null: recognised by its name, see lpo_ray.tasks.sources.columns; a column of a column is named with a dot"""
    answer_column: str | None = None
    """null: recognised by its name, as prompt_column"""
    options: dict[str, Any] = field(default_factory=dict)
    """the task's own options, such as {lengths: [7]} for token_reversal, or those of a generator of reasoning_gym"""


@dataclass
class SamplingConfig:
    """Sampling of responses in training."""

    group_size: int = 8
    """K, responses per prompt"""
    temperature: float = 1.0
    """temperature of the softmax over tokens"""
    top_p: float = 1.0
    """mass of the most probable tokens that are kept; 1: all"""
    top_k: int = 0
    """0: off"""
    min_p: float = 0.0
    """least probability that is kept, as a share of the largest; 0: off"""
    max_tokens: int = MISSING
    """tokens per response; of a conversation, per turn"""
    max_turns: int = 8
    """turns of a conversation, after which it is cut; read with an environment or tools only"""
    max_conversation_tokens: int | None = None
    """tokens of a conversation at which it is cut, those of prompt and environment included; null: as many as an engine
    has room for (rollout.max_model_len)
    """
    stop_token_ids: list[int] = field(default_factory=list)
    """tokens that end a response, beside the model's own end tokens and the chat template's end of turn"""

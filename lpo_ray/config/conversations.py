"""Whether responses are conversations, how long they may be, and combinations that cannot be meant."""

from __future__ import annotations

from lpo_ray.config.ranges import require
from lpo_ray.config.schema import AgentConfig, ClusterKind, Config, EnvironmentConfig, SamplingConfig, TaskConfig
from lpo_ray.errors import ConfigError


def is_conversation(task: TaskConfig) -> bool:
    """Whether a response is a conversation: there is somebody who answers the policy, or an agent that asks it."""
    return task.environment is not None or bool(task.tools) or has_agent(task)


def has_agent(task: TaskConfig) -> bool:
    """Whether a response is the session of an agent."""
    return task.agent is not None


def agent_command(task: TaskConfig) -> tuple[str, ...]:
    """Return the agent's command and its arguments; empty when the agent is a function, or there is none."""
    return tuple(map(str, task.agent)) if isinstance(task.agent, list) else ()


def most_turns(config: Config) -> int:
    """Count the turns that a response may have."""
    return config.sampling.max_turns if is_conversation(config.task) else 1


def most_sampled(config: Config) -> int:
    """Count the tokens of a response that may be sampled, those of all its turns. An agent may have many contexts, each
    of which the limit is for.
    """
    tokens, limit = most_turns(config) * config.sampling.max_tokens, config.sampling.max_conversation_tokens
    is_one = is_conversation(config.task) and not has_agent(config.task)
    return tokens if limit is None or not is_one else min(tokens, limit)


def check_conversations(config: Config) -> None:
    """Raise ConfigError for limits of conversations that do not go together."""
    task, sampling, environment = config.task, config.sampling, config.environment
    for number, tool in enumerate(task.tools):
        require(bool(tool.strip()), f"task.tools[{number}]", tool, "a tool's name, or file.py:function")
        require(task.tools.count(tool) == 1, "task.tools", task.tools, f"{tool!r} once")
    require(
        task.environment is None or bool(task.environment.strip()),
        "task.environment", task.environment, "an environment's name, file.py:Name, or null",
    )  # fmt: skip
    _check_agent(config)
    if not is_conversation(task):
        return
    limit = sampling.max_conversation_tokens
    if limit is not None and limit <= sampling.max_tokens:
        raise ConfigError(
            f"sampling.max_conversation_tokens is {limit} with sampling.max_tokens={sampling.max_tokens}: one turn "
            "could leave no room for the prompt; expected more than that, or null"
        )
    require(
        environment.turn_seconds <= environment.conversation_seconds,
        "environment.conversation_seconds",
        environment.conversation_seconds,
        f"environment.turn_seconds ({environment.turn_seconds:g}) at least",
    )


def _check_agent(config: Config) -> None:
    """Raise ConfigError for an agent that cannot be meant."""
    task, agent = config.task, config.task.agent
    if agent is None:
        return
    if isinstance(agent, list):
        words = all(isinstance(word, str | int | float) for word in agent)
        program = agent[0] if agent else None
        require(words and isinstance(program, str) and program.strip() != "", "task.agent", agent,
                "a command and its arguments, such as [python, agent.py]")  # fmt: skip
    else:
        where, _, name = agent.rpartition(":") if isinstance(agent, str) else ("", "", "")
        require(
            where.strip() != "" and name.isidentifier(),
            "task.agent",
            agent,
            'a function, such as "agent.py:solve", or a command: [python, agent.py]',
        )
    if task.environment is not None or task.tools:
        other = f"task.environment={task.environment}" if task.environment is not None else f"task.tools={task.tools}"
        raise ConfigError(
            f"task.agent is {agent!r} with {other}; expected one of them: an agent brings its own tools, and asks by "
            "itself"
        )
    require(
        config.cluster.kind is ClusterKind.ray, "cluster.kind", config.cluster.kind.value,
        "ray with task.agent: the endpoint is an actor",
    )  # fmt: skip


def without_effect(config: Config) -> list[str]:
    """Say what is set for conversations where there are none."""
    task, sampling = config.task, config.sampling
    why = "while task.environment is null and task.tools is empty: there is one turn"
    of_agents = config.agent != AgentConfig() and not has_agent(task)
    agents = ["agent has no effect while task.agent is null"] if of_agents else []
    if is_conversation(task):
        return agents
    default = SamplingConfig()
    given = [
        *(["sampling.max_turns"] if sampling.max_turns != default.max_turns else []),
        *(["sampling.max_conversation_tokens"] if sampling.max_conversation_tokens is not None else []),
        *(["task.tool_parser"] if task.tool_parser != "auto" else []),
        *(["environment"] if config.environment != EnvironmentConfig() else []),
    ]
    return [f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect {why}", *agents] if given else agents

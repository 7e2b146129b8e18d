"""A coding agent, unmodified: mini-swe-agent, which works in a shell. Run as a command, so in a folder and a sandbox.

pip install mini-swe-agent
lpo-ray train configs/smollm2_countdown.yaml 'task.agent=[python, configs/agents/mini_swe.py]' \
    sampling.max_tokens=96 sampling.max_turns=4 rollout.max_model_len=4096 evaluation.num_prompts=0 run.steps=2
"""

import json
import os
import sys

os.environ |= {"MSWEA_SILENT_STARTUP": "1", "MSWEA_COST_TRACKING": "ignore_errors"}
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for a price list

import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.config import builtin_config_dir
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel


def main() -> None:
    """Work on the row that is on standard input; print what the agent submits."""
    row = json.load(sys.stdin)
    config = yaml.safe_load((builtin_config_dir / "mini_textbased.yaml").read_text())
    model = LitellmTextbasedModel(model_name="openai/policy", model_kwargs={"drop_params": True})
    texts = {name: config["agent"][name] for name in ("system_template", "instance_template")}
    agent = DefaultAgent(model, LocalEnvironment(), step_limit=3, **texts)
    found = agent.run(row["prompt"])
    sys.stdout.write(str(found.get("submission", "")))


if __name__ == "__main__":
    main()

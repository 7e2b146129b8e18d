#!/bin/sh
# An agent of nothing but a shell and curl. Its row comes as JSON on standard input; python takes the prompt out of it.
#
# lpo-ray train configs/quickstart.yaml 'task.agent=[sh, configs/agents/ask.sh]' \
#     sampling.max_tokens=24 evaluation.num_prompts=0 run.steps=2
python -c 'import json, sys; print(json.dumps({"model": "policy", "prompt": json.load(sys.stdin)["prompt"]}))' |
    curl -s --fail "$OPENAI_BASE_URL/completions" --data @- \
        -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" |
    python -c 'import json, sys; sys.stdout.write(json.load(sys.stdin)["choices"][0]["text"])'

// An agent in another language: node, with nothing installed. It speaks Anthropic's API.
//
// lpo-ray train configs/quickstart.yaml 'task.agent=[node, configs/agents/ask.mjs]' \
//     sampling.max_tokens=24 evaluation.num_prompts=0 run.steps=2
import { readFileSync } from "node:fs";

const row = JSON.parse(readFileSync(0, "utf8"));
const reply = await fetch(`${process.env.ANTHROPIC_BASE_URL}/v1/messages`, {
  method: "POST",
  headers: { "content-type": "application/json", "x-api-key": process.env.ANTHROPIC_API_KEY },
  body: JSON.stringify({
    model: "policy",
    max_tokens: 24,
    messages: [{ role: "user", content: row.prompt }],
  }),
});
if (!reply.ok) throw new Error(await reply.text());
const answer = await reply.json();
process.stdout.write(answer.content.map((part) => part.text ?? "").join(""));

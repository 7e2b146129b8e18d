// One group: the prompt, what the step made of each response, and their tokens.

import { ask } from "./api.js";
import { count, el, format, number, shown, table } from "./dom.js";
import { COLOURS, tokensOf } from "./tokens.js";

const COLUMNS = [
  { name: "response" }, { name: "reward", number: true },
  { name: "w*", title: "target" }, { name: "P before", title: "policy on the group before its update" },
  { name: "P after", title: "policy on the group after the step, where measured" },
  { name: "coefficient", number: true, title: "c: its gradient of log-probability is multiplied by this" },
  { name: "s before", number: true, title: "log-ratio to the sampling policy before the update" },
  { name: "s after", number: true, title: "the same after the step, where measured" },
  { name: "entropy", number: true, title: "nats, mean of its tokens" }, { name: "tokens", number: true },
  { name: "ended by" }, { name: "stale", number: true, title: "staleness of its oldest token, in steps" },
];

export async function groupView(place, { run, parameters }) {
  const key = { run, ...Object.fromEntries(parameters) };
  const group = await ask("group", key);
  const measured = group.scale !== null;
  const colour = el("select", { id: "colour" }, Object.entries(COLOURS).map(([name, { text }]) =>
    el("option", { value: name, disabled: name === "log_ratio" && !measured }, text)));
  colour.value = measured ? "log_ratio" : "behaviour";
  const legend = el("span", { class: "legend-colour" });
  const cards = group.responses.map((response) => card(key, group, response, colour));
  const recolour = () => {
    COLOURS[colour.value].legend(legend, group);
    for (const one of cards) one.recolour();
  };
  colour.addEventListener("change", recolour);
  recolour();
  place.append(
    el("h2", {}, `Step ${group.step}, update ${group.update + 1}: `, el("bdi", {}, shown(group.prompt_id)),
      group.attempt ? ` (attempt ${group.attempt})` : ""),
    el("div", { class: "sides" },
      el("section", { "aria-label": "Prompt" }, el("h3", {}, "Prompt"), text(group.prompt)),
      el("section", { "aria-label": "Answer" }, el("h3", {}, "Answer for the verifier ", el("small", {}, el("bdi", {}, shown(group.verifier)))),
        text(group.answer), group.row && group.row !== "{}" ? el("details", {}, el("summary", {}, "Other columns"), text(group.row)) : null)),
    facts(group),
    table(`${group.responses.length} responses`, COLUMNS, group.responses.map(row)),
    el("div", { class: "tools" }, el("label", { for: "colour" }, "Colour tokens by "), colour, legend),
    ...cards.map((one) => one.element));
}

function facts(group) {
  const staleness = group.responses.map((response) => response.staleness);
  const found = [
    ["divergence", group.divergence], ["τ", format(group.temperature)], ["tempering", format(group.tempering, 2)],
    ["learning rate", format(group.learning_rate, 6)], ["staleness", Math.max(...staleness)],
  ];
  return el("dl", { class: "facts" }, found.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, shown(value)))));
}

function text(content) {
  return el("pre", { dir: "auto", tabindex: "0" }, shown(content));
}

function row(response) {
  const numbers = (...names) => names.map((name) => el("td", { class: "number" }, format(response[name])));
  return el("tr", {},
    el("th", { scope: "row" }, el("a", { href: `#response-${response.index}`, onclick: (event) => jump(event, response.index) }, response.index)),
    numbers("reward"), bar(response.target, "target"), bar(response.policy_before, "before"), bar(response.policy_after, "after"),
    numbers("coefficient", "log_ratio", "after", "entropy"),
    el("td", { class: "number" }, response.tokens), el("td", {}, shown(response.finish_reason)),
    el("td", { class: "number" }, response.staleness));
}

// Within the page, without leaving its place (the hash has that).
function jump(event, index) {
  event.preventDefault();
  const card = document.getElementById(`response-${index}`);
  card.scrollIntoView();
  card.focus({ preventScroll: true });
}

function bar(value, kind) {
  const fill = el("span", { class: `fill ${kind}`, "aria-hidden": "true" });
  fill.style.setProperty("--share", Math.min(1, Math.max(0, number(value) ?? 0)) || 0);
  return el("td", { class: "bar" }, fill, el("span", { class: "number" }, format(value)));
}

const ENDS = new Map([ // of a conversation, as the run has them
  ["done", "by its environment"], ["turns", "at sampling.max_turns"], ["tokens", "at its most tokens"],
  ["length", "by a turn of sampling.max_tokens"],
]);

function conversation(found) {
  const more = [
    found.segments > 1 ? count(found.segments, "segment") : null,
    found.moved ? `${count(found.moved, "turn")} moved to another engine` : null,
    found.redrawn ? `${count(found.redrawn, "turn")} drawn again after an engine was lost` : null,
    found.dropped ? `${count(found.dropped, "token")} of earlier turns that the chat template would leave out` : null,
  ].filter((one) => one !== null);
  return el("p", { class: "detail" }, `${count(found.turns, "turn")}, ended `, el("bdi", {}, shown(ENDS.get(found.ended) ?? found.ended)),
    `; the environment wrote ${count(found.environment_tokens, "token")} in ${format(found.environment_seconds, 2)} s`,
    more.map((one) => `; ${one}`));
}

function card(key, group, response, colour) {
  const versions = response.versions.map(([version, count]) => `v${version} × ${count}`).join(", ");
  const tokens = tokensOf(key, group, response, colour);
  const element = el("article", { id: `response-${response.index}`, class: "response", tabindex: "-1",
    "aria-label": `Response ${response.index}` },
    el("h3", {}, `Response ${response.index} `, el("span", { class: "reward" }, `reward ${format(response.reward, 2)}`),
      el("small", {}, ` weights ${versions || "none"} · w* ${format(response.target)} · P ${format(response.policy_before)} → ${format(response.policy_after)} · c ${format(response.coefficient)}`)),
    response.detail ? el("p", { class: "detail" }, "Verdict: ", el("bdi", {}, shown(response.detail))) : null,
    response.conversation ? conversation(response.conversation) : null,
    tokens.element);
  return { element, recolour: tokens.recolour };
}

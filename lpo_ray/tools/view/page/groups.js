// The groups of a run: what is wanted, in what order, a page of them.

import { ask } from "./api.js";
import { el, format, message, shown, table } from "./dom.js";
import * as route from "./route.js";

const COLUMNS = [
  { name: "step", order: "step", number: true },
  { name: "prompt" }, { name: "verifier" }, { name: "rewards", title: "of its responses: dark is the largest of the page" },
  { name: "mean", order: "reward", number: true, title: "mean reward" },
  { name: "spread", order: "spread", number: true, title: "largest less smallest reward" },
  { name: "gap", order: "gap", number: true, title: "total variation of w* and P, before the update" },
  { name: "moved", order: "moved", number: true, title: "total variation of P before and after the step, where measured" },
  { name: "stale", order: "staleness", number: true, title: "staleness of its oldest token, in steps" },
  { name: "tokens", order: "tokens", number: true, title: "of its longest response" },
  { name: "cut", number: true, title: "responses that ended at the token limit" },
];
const WAIT = 250; // milliseconds after the last key
const MOST_CELLS = 32;

export async function groupsView(place, { run, parameters }) {
  const form = filters(parameters);
  const results = el("div", { class: "results" });
  place.append(form, results);
  const where = { order: parameters.get("order") || "step", ascending: parameters.get("ascending") === "true",
    page: Number(parameters.get("page")) || 0 };
  let asked = 0, timer = null;

  const load = async () => {
    const mine = ++asked;
    const wanted = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
    const question = { ...wanted, ...where };
    const defaults = { order: "step", ascending: false, page: 0 };
    const kept = Object.fromEntries(Object.entries(question).filter(([name, value]) => value !== defaults[name]));
    history.replaceState(null, "", route.to(run, "groups", kept));
    try {
      const listing = await ask("groups", { run, ...question });
      if (mine !== asked) return;
      where.page = listing.page;
      offer(form.elements.verifier, listing.verifiers);
      const focused = document.activeElement?.id;
      results.replaceChildren(...answer(run, listing, where, go));
      if (focused) document.getElementById(focused)?.focus();
    } catch (error) {
      if (mine === asked) results.replaceChildren(message(error.message, "problem"));
    }
  };
  const go = (change) => {
    Object.assign(where, change);
    return load();
  };
  const changed = () => {
    clearTimeout(timer);
    timer = setTimeout(go, WAIT, { page: 0 });
  };
  form.addEventListener("input", changed);
  form.addEventListener("reset", () => setTimeout(changed));
  form.addEventListener("submit", (event) => event.preventDefault());
  await load();
  return load;
}

function filters(parameters) {
  const given = (name) => parameters.get(name) ?? "";
  const number = (name, label, attributes = {}) =>
    el("input", { type: "number", name, "aria-label": label, value: given(name), ...attributes });
  const check = (name, text) => el("label", { class: "check" },
    el("input", { type: "checkbox", name, value: "true", checked: given(name) === "true" }), text);
  const pair = (text, first, last) => el("fieldset", {}, el("legend", {}, text), first, " to ", last);
  const verifier = el("select", { name: "verifier" }, el("option", { value: "" }, "any"));
  if (given("verifier")) verifier.append(el("option", { value: given("verifier"), selected: true }, given("verifier")));
  return el("form", { class: "filters", role: "search", autocomplete: "off" },
    el("label", {}, "Text ", el("input", { type: "search", name: "text", value: given("text"), maxlength: 1000,
      placeholder: "prompt, response, answer, verdict" })),
    pair("Mean reward", number("least_reward", "least mean reward", { step: "any" }),
      number("most_reward", "largest mean reward", { step: "any" })),
    pair("Staleness", number("least_staleness", "least staleness"), number("most_staleness", "largest staleness")),
    pair("Steps", number("first", "first step"), number("last", "last step")),
    el("label", {}, "Verifier ", verifier),
    check("mixed", "mixed rewards only"), check("measured", "measured after the step only"),
    el("button", { type: "reset" }, "All groups"));
}

function offer(select, verifiers) {
  const chosen = select.value;
  const names = [...new Set([...verifiers, ...(chosen ? [chosen] : [])])];
  const texts = [...select.options].slice(1).map((option) => option.value);
  if (JSON.stringify(texts) === JSON.stringify(names)) return;
  select.replaceChildren(el("option", { value: "" }, "any"), ...names.map((name) =>
    el("option", { value: name, selected: name === chosen }, name)));
}

function answer(run, listing, where, go) {
  const parts = [];
  for (const why of Object.values(listing.unreadable)) parts.push(message(why, "problem"));
  if (!listing.read.length) {
    parts.push(message("No step in this range has samples yet."));
    return parts;
  }
  const largest = listing.groups.flatMap((group) => group.rewards).map(Number).filter(Number.isFinite)
    .reduce((one, other) => Math.max(one, other), 0);
  const caption = `${listing.total} group${listing.total === 1 ? "" : "s"} in steps ${listing.read.at(-1)} to ${listing.read[0]}`;
  const found = table(caption, COLUMNS, listing.groups.map((group) => row(run, group, largest)));
  COLUMNS.forEach((column, at) => { if (column.order) sortable(found.querySelectorAll("th")[at], column, where, go); });
  parts.push(found, pages(listing, go));
  if (listing.left.length) {
    parts.push(message(`Older steps (${listing.left.at(-1)} to ${listing.left[0]}) were not read. To see them, set the last step.`));
  }
  return parts;
}

function sortable(head, column, where, go) {
  const here = where.order === column.order;
  if (here) head.setAttribute("aria-sort", where.ascending ? "ascending" : "descending");
  const arrow = here ? el("span", { "aria-hidden": "true" }, where.ascending ? " ▲" : " ▼") : null;
  const click = () => go({ order: column.order, ascending: here && !where.ascending, page: 0 });
  head.replaceChildren(...[el("button", { type: "button", id: `order-${column.order}`, onclick: click }, column.name, arrow)]);
}

function row(run, group, largest) {
  const key = { step: group.step, prompt_id: group.prompt_id, attempt: group.attempt };
  const cells = group.rewards.slice(0, MOST_CELLS).map((reward) => {
    const cell = el("span", { class: "cell" });
    cell.style.setProperty("--share", Math.min(1, Math.max(0, largest > 0 ? Number(reward) / largest : 0)) || 0);
    return cell;
  });
  const spoken = group.rewards.map((reward) => format(reward, 2)).join(" ");
  const numbers = [group.reward, group.spread, group.gap, group.moved].map((value) =>
    el("td", { class: "number" }, format(value)));
  return el("tr", {},
    el("td", { class: "number" }, group.step),
    el("th", { scope: "row", class: "prompt" }, el("a", { href: route.to(run, "group", key) }, el("bdi", {}, shown(group.prompt || group.prompt_id)))),
    el("td", {}, el("bdi", {}, shown(group.verifier))),
    el("td", {}, el("span", { class: "cells", role: "img", "aria-label": spoken, title: spoken }, cells)), numbers,
    ["staleness", "tokens", "cut"].map((name) => el("td", { class: "number" }, group[name])));
}

function pages(listing, go) {
  const button = (id, text, page, here) =>
    el("button", { type: "button", id, disabled: !here, onclick: () => go({ page }) }, text);
  return el("nav", { class: "pages", "aria-label": "Pages" },
    button("page-before", "Before", listing.page - 1, listing.page > 0),
    el("span", {}, ` page ${listing.page + 1} of ${listing.pages} `),
    button("page-next", "Next", listing.page + 1, listing.page + 1 < listing.pages));
}

// All runs.

import { ask } from "./api.js";
import { el, format, shown, table } from "./dom.js";
import * as route from "./route.js";

const COLUMNS = [
  { name: "run" }, { name: "task" }, { name: "state" }, { name: "step", number: true },
  { name: "reward", number: true, title: "mean of the newest step" },
  { name: "pass rate", number: true }, { name: "token entropy", number: true, title: "nats" },
  { name: "staleness", number: true, title: "mean of the newest step" },
];

export async function runsView(place) {
  const update = async () => {
    const runs = await ask("runs");
    const focused = document.activeElement?.getAttribute("href");
    place.replaceChildren(table(`${runs.length} run${runs.length === 1 ? "" : "s"}`, COLUMNS, runs.map(row)));
    if (focused) [...place.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
  };
  await update();
  return update;
}

function row(info) {
  const where = info.run === "." || info.run === info.name ? null : el("small", {}, " ", shown(info.run));
  const numbers = ["reward", "pass_rate", "token_entropy", "staleness"].map((name) =>
    el("td", { class: "number" }, format(info.last[name])));
  return el("tr", {},
    el("th", { scope: "row" }, el("a", { href: route.to(info.run) }, el("bdi", {}, shown(info.name))), where),
    el("td", {}, el("bdi", {}, shown(info.task))), el("td", {}, shown(info.state)),
    el("td", { class: "number" }, info.steps === null ? info.step : `${info.step} / ${info.steps}`), numbers);
}

// The page: which view is open, and what is new in its run every few seconds.

import { ask } from "./api.js";
import { curvesView } from "./curves.js";
import { el, message, shown } from "./dom.js";
import { groupView } from "./group.js";
import { groupsView } from "./groups.js";
import { logView } from "./log.js";
import * as route from "./route.js";
import { runsView } from "./runs.js";

// A view fills a place of the page: async (main, place, info) => update or nothing. `update(info)` is called when the
// run has something new.
const VIEWS = { groups: groupsView, group: groupView, curves: curvesView, log: logView };
const TABS = { groups: "Groups", curves: "Curves", log: "Log" };
const EVERY = 3000; // milliseconds

const main = document.getElementById("main");
const trail = document.getElementById("trail");
const live = document.getElementById("live");
let opened = 0; // counts places: what comes late for an older one is dropped
let update = null;
let seen = "";
let timer = null;

async function open() {
  const mine = ++opened;
  clearTimeout(timer);
  const place = route.read();
  const filled = el("div", { class: "view" });
  main.setAttribute("aria-busy", "true");
  update = null;
  try {
    const info = place.run === null ? null : await ask("run", { run: place.run });
    const made = info === null ? await runsView(filled) : await (VIEWS[place.view] ?? groupsView)(filled, place, info);
    if (mine !== opened) return;
    update = made ?? null;
    show(info, place);
  } catch (error) {
    if (mine !== opened) return;
    trail.replaceChildren();
    filled.replaceChildren(message(error.message, "problem"));
  }
  main.replaceChildren(filled);
  main.removeAttribute("aria-busy");
  timer = setTimeout(poll, EVERY, mine);
}

async function poll(mine) {
  if (!document.hidden) {
    try {
      const { run } = route.read();
      const info = run === null ? null : await ask("run", { run });
      if (mine !== opened) return;
      const changed = info !== null && JSON.stringify(info) !== seen;
      if (info !== null) show(info, route.read());
      if (update !== null && (changed || info === null)) await update(info);
      live.classList.remove("lost");
    } catch (error) {
      if (mine !== opened) return;
      live.replaceChildren(...shown(`no answer: ${error.message}`));
      live.classList.add("lost");
    }
  }
  if (mine === opened) timer = setTimeout(poll, EVERY, mine);
}

function show(info, place) {
  seen = JSON.stringify(info);
  document.title = info === null ? "lpo-ray" : `${info.name} · lpo-ray`;
  if (info === null) {
    trail.replaceChildren();
    live.replaceChildren();
    return;
  }
  const tabs = Object.entries(TABS).map(([view, name]) => {
    const here = view === place.view || (view === "groups" && place.view === "group");
    return el("a", { href: route.to(info.run, view), "aria-current": here && "page" }, name);
  });
  trail.replaceChildren(el("bdi", { class: "run" }, shown(info.name)), ...tabs);
  const steps = info.steps === null ? info.step : `${info.step} of ${info.steps}`;
  const text = `${info.state}, step ${steps}`;
  if (live.textContent !== text) live.replaceChildren(...shown(text));
  live.classList.toggle("running", info.state === "running");
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash is the place
  main.focus();
});
addEventListener("hashchange", open);
open();

// What the run and its workers said last.

import { ask } from "./api.js";
import { el, message, shown } from "./dom.js";

export async function logView(place, { run }) {
  const update = async () => {
    const lines = await ask("log", { run });
    const rows = lines.toReversed().map((line) => el("li", { class: line.level }, shown(line.text)));
    place.replaceChildren(el("h2", {}, "Log, newest first"), rows.length ? el("ol", { class: "log" }, rows)
      : message("log.jsonl has no lines yet."));
  };
  await update();
  return update;
}

// The tokens of a response, coloured by a number of each. They are asked for when they come into view, a part at a time.

import { ask } from "./api.js";
import { count, el, format, message, number, shown } from "./dom.js";

const SERIES_CLASSES = 7; // of style.css
const CLEAR = 0.02; // share of the full colour below which a token has none

export const COLOURS = {
  log_ratio: {
    text: "log-ratio: after the step to the sampling policy",
    legend: (place, group) => scale(place, `−${format(group.scale)}`, ["down", "up"], `+${format(group.scale)}`),
    paint: (span, token, group) => {
      const share = number(token.log_ratio) / (number(group.scale) || 1);
      span.className = `token ${share < 0 ? "down" : "up"}`;
      return token.log_ratio === null ? 0 : Math.abs(share);
    },
  },
  behaviour: {
    text: "log-probability when sampled",
    legend: (place) => scale(place, "0", ["surprise"], "−5 and less"),
    paint: (span, token) => {
      span.className = "token surprise";
      return -number(token.behaviour) / 5;
    },
  },
  version: {
    text: "weights version",
    legend: (place) => place.replaceChildren("neighbours of one colour were sampled by the same weights"),
    paint: (span, token) => {
      span.className = `token version series-${token.version % SERIES_CLASSES}`;
      return 1;
    },
  },
  none: { text: "nothing", legend: (place) => place.replaceChildren(), paint: (span) => { span.className = "token"; return 0; } },
};

export function tokensOf(key, group, response, colour) {
  const text = el("div", { class: "tokens", dir: "auto" });
  const after = el("div", { class: "more" });
  const element = el("div", {}, text, after);
  const spans = []; // [element, token]
  let position = false;
  let place = text; // where the next token goes: within a conversation, what its author wrote

  const paint = ([span, token]) => {
    const share = COLOURS[colour.value].paint(span, token, group);
    span.style.setProperty("--share", share > CLEAR ? Math.min(1, share) : 0);
  };
  const load = async () => {
    after.replaceChildren("…");
    try {
      const found = await ask("tokens", { ...key, response: response.index, start: spans.length });
      if (!found.exact && !position) {
        position = true;
        text.before(message("The run's tokenizer is not on this machine: the text is cut into tokens by position."));
      }
      const added = found.texts.map((piece, at) => {
        const token = { log_ratio: found.log_ratio?.[at] ?? null, behaviour: found.behaviour[at], version: found.versions[at] };
        const written = token.version === null; // by the environment
        const about = [`token ${found.start + at}: id ${found.ids[at]}`, ...(written ? ["not sampled: conditions only"] :
          [`log-ratio ${format(token.log_ratio)}`, `log-probability ${format(token.behaviour)}`, `weights ${token.version}`])];
        const span = el("span", { title: about.join("\n"), class: written ? "written" : null }, visible(piece));
        if (!written) paint([span, token]);
        return [span, token];
      });
      spans.push(...added);
      const marks = Map.groupBy(found.marks, (mark) => mark.at - found.start);
      added.forEach(([span], at) => {
        for (const mark of marks.get(at) ?? []) {
          if (mark.kind === "segment") text.append(segment(mark));
          else text.append(el("section", { class: `part ${mark.kind}`, "aria-label": mark.kind === "turn" ? "policy" : "environment" }, head(mark),
            place = el("div", { dir: "auto", tabindex: mark.kind === "author" ? "0" : null })));
        }
        place.append(span);
      });
      const left = found.total - spans.length;
      after.replaceChildren(...(left > 0 && added.length ? [el("button", { type: "button", onclick: load }, `Show more: ${left} tokens left`)] : []));
    } catch (error) {
      after.replaceChildren(message(error.message, "problem"));
    }
  };
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    load();
  }, { rootMargin: "400px" });
  seen.observe(element);
  return { element, recolour: () => spans.filter(([, token]) => token.version !== null).forEach(paint) };
}

// What stands above a turn of the policy, or above what another author wrote.
function head(mark) {
  if (mark.kind === "author") {
    return el("div", { class: "mark" }, el("b", {}, el("bdi", {}, shown(mark.text))), `, ${count(mark.tokens, "token")}, not sampled`);
  }
  const calls = mark.calls.map((call) => [", calls ", el("code", {}, el("bdi", {}, shown(call)))]);
  return el("div", { class: "mark" }, el("b", {}, `Turn ${mark.text}`), `: policy, ${count(mark.tokens, "token")}`, ...calls.flat());
}

// Where a segment of a conversation begins, and what it stands behind.
function segment(mark) {
  const why = ["A segment begins: ", el("bdi", {}, shown(mark.text || "another context"))];
  if (!mark.tokens) return el("div", { class: "mark segment" }, why);
  return el("details", { class: "mark segment" }, el("summary", {}, why, ` (behind ${count(mark.tokens, "token")})`),
    mark.context === null ? message("The run's tokenizer is not on this machine.") : el("pre", { dir: "auto" }, shown(mark.context)));
}

// A token has at least one character to be seen: ends of lines, and tokens whose character is the next one's text.
function visible(piece) {
  if (piece === "") return el("span", { class: "hidden-character", title: "a part of the next character" }, "◦");
  return piece.split(/(\n)/).filter((part) => part !== "").flatMap((part) =>
    part === "\n" ? [el("span", { class: "hidden-character", "aria-hidden": "true" }, "⏎"), "\n"] : shown(part));
}

function scale(place, low, kinds, high) {
  const steps = (kind) => [1, 0.66, 0.33].map((share) => {
    const cell = el("span", { class: `cell token ${kind}` });
    cell.style.setProperty("--share", share);
    return cell;
  });
  const cells = kinds.length === 2 ? [...steps(kinds[0]), ...steps(kinds[1]).reverse()] : steps(kinds[0]).reverse();
  place.replaceChildren(low, " ", ...cells, " ", high);
}

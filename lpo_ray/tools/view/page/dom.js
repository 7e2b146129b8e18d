// Elements from values. Text of a run reaches the page here and only as text nodes: there is no way to hand over markup.

// Characters that a browser would act on or not show: controls, formats such as right-to-left marks, unassigned ones.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
const SPLIT = /([\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}])/u;
const SVG = "http://www.w3.org/2000/svg";

export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

// Text of a run, with hidden characters by their number. Lines stay lines.
export function shown(text) {
  return String(text ?? "").split(SPLIT).filter((part) => part !== "").map((part) => {
    if (!HIDDEN.test(part) || part === "\n") return document.createTextNode(part);
    if (part === "\t") return el("span", { class: "hidden-character", title: "tab" }, "⇥\t");
    const number = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return el("span", { class: "hidden-character", title: `character U+${number}` }, `U+${number}`);
  });
}

// A number of a run: null where there is none. The server writes "NaN" and "Infinity" as strings.
export function number(value) {
  return value === null || value === undefined ? null : Number(value);
}

export function format(value, digits = 3) {
  const found = number(value);
  if (found === null) return "–";
  if (!Number.isFinite(found)) return Number.isNaN(found) ? "NaN" : found > 0 ? "∞" : "−∞";
  const text = found !== 0 && Math.abs(found) < 10 ** -digits ? found.toExponential(1) : found.toFixed(digits);
  return text.replace("-", "−");
}

export function count(number, name) {
  return `${number} ${name}${number === 1 ? "" : "s"}`;
}

export function table(caption, columns, rows) {
  const head = columns.map((column) =>
    el("th", { scope: "col", class: column.number && "number", title: column.title }, column.name));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

export function message(text, kind = "note") {
  return el("p", { class: kind, role: kind === "problem" ? "alert" : null }, shown(text));
}

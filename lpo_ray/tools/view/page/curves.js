// Curves of a run: small figures, drawn as SVG. Pointing at one reads its values at a step.

import { ask } from "./api.js";
import { el, format, message, number, svg } from "./dom.js";

const WIDTH = 420, HEIGHT = 200, LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 24;
const SERIES_CLASSES = 7; // of style.css

export async function curvesView(place, { run }) {
  let revision = null;
  const update = async (info) => {
    if (info && info.revision === revision) return;
    const charts = await ask("curves", { run });
    revision = info?.revision ?? null;
    place.replaceChildren(charts.length ? el("div", { class: "charts" }, charts.map(figure))
      : message("No step has ended yet: metrics.jsonl has no lines."));
  };
  await update(null);
  return update;
}

function figure(chart) {
  const series = (chart.stacked ? stacked(chart) : chart.series).map((one) => ({
    label: one.label, values: one.values.map(number), base: one.base, read: (one.read ?? one.values).map(number),
    low: one.low?.map(number), high: one.high?.map(number),
  }));
  const steps = chart.steps.map(Number);
  const all = series.flatMap((one) => [...one.values, ...(one.low ?? []), ...(one.high ?? [])]).filter(finite);
  if (chart.stacked) all.push(0, 1);
  const [low, high] = range(all);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const x = (step) => LEFT + (last === first ? 0.5 : (step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary(chart, series, steps) },
    axes(low, high, first, last, x, y), series.map((one, at) => line(one, at, steps, x, y)), cursor);
  const step = el("span", { class: "at" });
  const readings = series.map(() => el("output", {}));
  const read = (at) => {
    step.textContent = `step ${steps[at]}`;
    series.forEach((one, which) => { readings[which].textContent = format(one.read[at]); });
  };
  read(steps.length - 1);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * WIDTH;
    let at = 0;
    steps.forEach((one, which) => { if (Math.abs(x(one) - wanted) < Math.abs(x(steps[at]) - wanted)) at = which; });
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(steps[at]));
    cursor.setAttribute("visibility", "visible");
    read(at);
  });
  drawing.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    read(steps.length - 1);
  });
  const legend = series.map((one, at) => el("li", { class: `series-${at % SERIES_CLASSES}` }, one.label, " ", readings[at]));
  return el("figure", {}, el("figcaption", {}, el("h2", {}, chart.title), el("small", {}, chart.unit, ", ", step)), drawing,
    el("ul", { class: "legend" }, legend), chart.about ? el("p", { class: "about" }, chart.about) : null);
}

function line(one, at, steps, x, y) {
  const parts = [];
  const points = steps.map((step, which) => [x(step), one.values[which]]).map(([px, value]) => [px, finite(value) ? y(value) : null]);
  if (one.base) {
    const back = steps.map((step, which) => [x(step), y(one.base[which])]).reverse();
    parts.push(svg("path", { class: "area", d: path([...points, ...back]) }));
  } else if (one.low) {
    steps.forEach((step, which) => {
      if (finite(one.low[which]) && finite(one.high[which])) {
        parts.push(svg("path", { class: "curve interval", d: path([[x(step), y(one.low[which])], [x(step), y(one.high[which])]]) }));
      }
    });
  }
  if (!one.base) parts.push(svg("path", { class: "curve", d: path(points) }));
  if (one.low || steps.length === 1) {
    for (const [px, py] of points) if (py !== null) parts.push(svg("circle", { class: "dot", cx: px, cy: py, r: 2.5 }));
  }
  return svg("g", { class: `series-${at % SERIES_CLASSES}` }, parts);
}

function axes(low, high, first, last, x, y) {
  const marks = [];
  for (const part of [0, 0.5, 1]) {
    const value = low + part * (high - low);
    marks.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 3, "text-anchor": "end" }, short(value)));
  }
  marks.push(svg("text", { class: "tick", x: x(first), y: HEIGHT - 6, "text-anchor": "middle" }, String(first)));
  if (last !== first) marks.push(svg("text", { class: "tick", x: x(last), y: HEIGHT - 6, "text-anchor": "end" }, String(last)));
  return svg("g", { "aria-hidden": "true" }, marks);
}

// Shares of the sum, one upon the other; `read` keeps each one's own.
function stacked(chart) {
  let base = chart.steps.map(() => 0);
  const totals = chart.steps.map((_, at) => chart.series.reduce((sum, one) => sum + (number(one.values[at]) ?? 0), 0) || 1);
  return chart.series.map((one) => {
    const read = one.values.map((value, at) => (number(value) ?? 0) / totals[at]);
    const under = base;
    base = read.map((value, at) => under[at] + value);
    return { label: one.label, values: base, base: under, read };
  });
}

function range(values) {
  if (!values.length) return [0, 1];
  const low = values.reduce((one, other) => Math.min(one, other));
  const high = values.reduce((one, other) => Math.max(one, other));
  const room = high > low ? 0 : Math.abs(high) * 0.1 || 0.5;
  return [low - room, high + room];
}

function path(points) {
  let text = "", pen = "M";
  for (const [px, py] of points) {
    if (py === null) pen = "M";
    else {
      text += `${pen}${px.toFixed(1)} ${py.toFixed(1)}`;
      pen = "L";
    }
  }
  return text;
}

function short(value) {
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function summary(chart, series, steps) {
  const ends = series.map((one) => `${one.label} ${format(one.read[0])} to ${format(one.read.at(-1))}`);
  return `${chart.title}, steps ${steps[0]} to ${steps.at(-1)}: ${ends.join("; ")}`;
}

function finite(value) {
  return value !== null && value !== undefined && Number.isFinite(value);
}

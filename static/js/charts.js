// Figures as the server describes them (apps/monitoring/figures.py), drawn by plotly.
//
//   <section data-charts data-url="…" data-every="2">          one request for all figures in it: {charts: {name: figure}}
//     <figure class="card chart" data-chart="name"> … </figure>
//   <figure class="card chart" data-chart data-url="…" data-every="2">   one request of its own: figure
//
// figure: {data, layout, now, table: {head, rows}, empty, final, link}. Colours are names of tokens; times are in UTC.
import { heard, lost } from "./live.js";
import { say } from "./strings.js";

const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, showTips: false };
const RETRY_SECONDS = 5;
const DOUBLE_CLICK_MS = 320;
const pad = (number) => String(number).padStart(2, "0");

// -- colours and times

const probe = document.createElement("span");
let colours = new Map();

function colour(token) {
  if (!colours.has(token)) {
    // light-dark() is only resolved in a property that takes a colour.
    probe.style.color = `var(${token})`;
    colours.set(token, getComputedStyle(probe).color);
  }
  return colours.get(token);
}

function local(moment) {
  const date = new Date(moment);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

const TOKEN = /^var\((--[\w-]+)\)$/;
const MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$/;

function resolved(value, key = "") {
  if (typeof value === "string") {
    const token = value.match(TOKEN);
    if (token) return key === "family" ? getComputedStyle(document.documentElement).getPropertyValue(token[1]).trim() : colour(token[1]);
    return MOMENT.test(value) ? local(value) : value;
  }
  if (Array.isArray(value)) return value.map((each) => resolved(each, key));
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, resolved(each, name)]));
  return value;
}

// -- one figure

const drawn = new Map(); // element → {figure, plot}

function showTable(element, table) {
  const box = element.querySelector("[data-table]");
  if (!box || !table || !box.closest("details").open) return;
  const cell = (name, text, scope) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };
  const made = document.createElement("table");
  made.className = "table table-tight";
  const head = made.createTHead().insertRow();
  table.head.forEach((text, at) => { const th = cell("th", text, "col"); if (at) th.className = "n"; head.append(th); });
  const body = made.createTBody();
  table.rows.forEach((row) => {
    const line = body.insertRow();
    row.forEach((text, at) => { const td = cell("td", MOMENT.test(text) ? local(text) : text); if (at) td.className = "n"; line.append(td); });
  });
  box.replaceChildren(made);
}

function wait(element, text) {
  const word = element.querySelector("[data-wait]");
  word.textContent = text;
  word.hidden = !text;
}

async function draw(element, figure) {
  const plot = element.querySelector("[data-plot]");
  const canvas = plot.querySelector("[data-canvas]") || plot.appendChild(Object.assign(document.createElement("div"), { className: "chart-canvas" }));
  canvas.dataset.canvas = "";
  const now = element.querySelector("[data-now]");
  if (now && figure.now && now.textContent !== figure.now) now.textContent = figure.now;
  const first = !drawn.get(element)?.canvas;
  drawn.set(element, { figure, canvas: figure.empty ? null : canvas });
  showTable(element, figure.table);
  wait(element, figure.empty);
  if (figure.empty) {
    Plotly.purge(canvas);
    canvas.replaceChildren();
    return;
  }
  const layout = resolved(figure.layout);
  layout.width = plot.clientWidth || undefined;
  plot.style.height = `${layout.height}px`;
  const stretch = zooms.get(groupOf(element));
  if (stretch && !("alone" in element.dataset)) Object.assign(layout.xaxis, { range: stretch, autorange: false });
  await Plotly.react(canvas, resolved(figure.data), layout, CONFIG);
  if (first) listen(element, canvas);
}

// -- hovering and zooming together

const zooms = new WeakMap(); // group → the stretch its charts are zoomed to, as the axis has it
let following = false;

const groupOf = (element) => element.closest("[data-charts]") || document.body;

function members(element) {
  if ("alone" in element.dataset) return [element];
  return [...groupOf(element).querySelectorAll("[data-chart]")].filter((other) => drawn.get(other)?.canvas && !("alone" in other.dataset));
}

// The points of a figure at the place `x`, one a line: its last that is not after it. `x` as the server gave it: a number, or UTC.
function pointsAt(figure, x) {
  return figure.data.flatMap((trace, curveNumber) => {
    if (!trace.x?.length) return [];
    let low = 0, high = trace.x.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (trace.x[middle] <= x) low = middle; else high = middle - 1;
    }
    return trace.y[low] === null ? [] : [{ curveNumber, pointNumber: low }];
  });
}

function follow(element, action) {
  if (following) return;
  following = true;
  try { members(element).filter((other) => other !== element).forEach(action); } finally { following = false; }
}

function zoom(element, range) {
  if (range) zooms.set(groupOf(element), range);
  else zooms.delete(groupOf(element));
  members(element).forEach((other) => draw(other, drawn.get(other).figure));
}

function listen(element, canvas) {
  canvas.on("plotly_hover", (event) => {
    const point = event.points?.[0];
    if (!point || following) return;
    const x = drawn.get(element).figure.data[point.curveNumber].x?.[point.pointNumber];
    if (x === undefined) return;
    follow(element, (other) => {
      const points = pointsAt(drawn.get(other).figure, x);
      if (points.length) Plotly.Fx.hover(drawn.get(other).canvas, points);
    });
  });
  canvas.on("plotly_unhover", () => follow(element, (other) => Plotly.Fx.unhover(drawn.get(other).canvas)));
  canvas.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    if (from !== undefined && to !== undefined) zoom(element, [from, to]);
  });
  let leaving = 0, doubled = 0;
  canvas.on("plotly_doubleclick", () => {
    clearTimeout(leaving);
    doubled = performance.now();
    zoom(element, null);
  });
  canvas.on("plotly_click", (event) => {
    const point = event.points?.[0];
    if (!point) return;
    const { figure } = drawn.get(element);
    let to = typeof point.customdata === "string" ? point.customdata : "";
    if (figure.link) to = location.pathname + figure.link.replace("{x}", encodeURIComponent(figure.data[point.curveNumber].x[point.pointNumber]));
    clearTimeout(leaving);
    // Neither half of a double click, which shows the whole stretch again, must lead away.
    if (to.startsWith("/") && performance.now() - doubled > DOUBLE_CLICK_MS) leaving = setTimeout(() => location.assign(to), DOUBLE_CLICK_MS);
  });
}

// -- asking the server

function elementsOf(source) {
  if (source.matches("[data-chart]")) return [[source, (answer) => answer]];
  return [...source.querySelectorAll("[data-chart]")].map((element) => [element, (answer) => answer.charts[element.dataset.chart]]);
}

async function refresh(source) {
  let answer = null;
  try {
    const response = await fetch(source.dataset.url, { headers: { Accept: "application/json" } });
    if (response.redirected && new URL(response.url).pathname.startsWith("/login")) { location.reload(); return true; }
    if (response.ok) answer = await response.json();
    else elementsOf(source).forEach(([element]) => { if (!drawn.has(element)) wait(element, say("chart_failed")); });
  } catch { /* said below */ }
  if (!answer) { lost(); return false; }
  heard();
  const figures = elementsOf(source).map(([element, pick]) => [element, pick(answer)]).filter(([, figure]) => figure);
  for (const [element, figure] of figures) await draw(element, figure);
  return figures.length > 0 && figures.every(([, figure]) => figure.final);
}

function keep(source) {
  const every = Number(source.dataset.every || 0) * 1000;
  let timer = 0, busy = false, done = false;
  const turn = async () => {
    clearTimeout(timer);
    if (busy || done || !source.isConnected) return;
    if (!document.hidden) {
      busy = true;
      const known = drawn.size;
      done = await refresh(source);
      busy = false;
      if (done || (!every && drawn.size > known)) return;
    }
    timer = setTimeout(turn, every || RETRY_SECONDS * 1000);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
  turn();
}

function plotly() {
  if (window.Plotly) return Promise.resolve();
  const script = document.querySelector("script[data-plotly]");
  return new Promise((resolve, reject) => {
    script.addEventListener("load", resolve);
    script.addEventListener("error", reject);
  });
}

export async function startCharts() {
  probe.hidden = true;
  document.body.append(probe);
  const all = [...document.querySelectorAll("[data-chart]")];
  try {
    await plotly();
  } catch {
    all.forEach((element) => wait(element, say("chart_failed")));
    return;
  }
  document.querySelectorAll("[data-charts], [data-chart][data-url]").forEach(keep);
  document.addEventListener("themechange", () => {
    colours = new Map();
    drawn.forEach(({ figure }, element) => draw(element, figure));
  });
  all.forEach((element) => element.querySelector("details")?.addEventListener("toggle", () => showTable(element, drawn.get(element)?.figure.table)));
  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => drawn.forEach(({ figure }, element) => draw(element, figure)), 120);
  });
}

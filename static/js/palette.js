// Ctrl-K: go anywhere, do anything. `?` shows the keys, `g` and a letter goes.
import { cycleTheme } from "./theme.js";

const GO_MS = 1200;
const dialog = document.getElementById("palette");
const keys = document.getElementById("keys");
const field = dialog?.querySelector("input");
const list = dialog?.querySelector("[data-results]");
let asked = 0, waitingForGo = 0, timer = 0;

const options = () => [...list.querySelectorAll("[role=option]")];

function select(element) {
  options().forEach((option) => option.setAttribute("aria-selected", String(option === element)));
  if (!element) return field.removeAttribute("aria-activedescendant");
  field.setAttribute("aria-activedescendant", element.id);
  element.scrollIntoView({ block: "nearest" });
}

async function search() {
  const mine = ++asked;
  const answer = await fetch(`${dialog.dataset.url}?fragment=1&q=${encodeURIComponent(field.value)}`).catch(() => null);
  if (!answer?.ok || mine !== asked) return;
  list.innerHTML = await answer.text();
  select(options()[0]);
}

export function openPalette() {
  if (!dialog || dialog.open) return;
  document.querySelectorAll("dialog[open]").forEach((other) => other.close());
  dialog.showModal();
  field.select();
  search();
}

function move(step) {
  const all = options();
  const at = all.findIndex((option) => option.getAttribute("aria-selected") === "true");
  select(all[(at + step + all.length) % all.length]);
}

function typing(target) {
  return target.closest?.("input, textarea, select, [contenteditable]");
}

function onKey(event) {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    openPalette();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || document.querySelector("dialog[open]")) return;
  if (event.key === "/") { event.preventDefault(); openPalette(); return; }
  if (event.key === "?") { keys?.showModal(); return; }
  if (performance.now() - waitingForGo < GO_MS) {
    waitingForGo = 0;
    document.querySelector(`.rail a[data-key="${CSS.escape(event.key)}"]`)?.click();
    return;
  }
  if (event.key === "g") waitingForGo = performance.now();
  if (event.key === "t") cycleTheme();
}

export function startPalette() {
  if (!dialog) return;
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-palette]")) { event.preventDefault(); openPalette(); }
  });
  field.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 80); });
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); move(event.key === "ArrowDown" ? 1 : -1); }
    if (event.key === "Enter") { event.preventDefault(); list.querySelector("[aria-selected=true]")?.click(); }
  });
}

// System → light → dark → system. Charts listen for "themechange".
import { say } from "./strings.js";

const root = document.documentElement;
const next = { system: "light", light: "dark", dark: "system" };

function choice() {
  return root.dataset.theme || "system";
}

function announce() {
  document.querySelectorAll("[data-theme-switch]").forEach((button) => {
    const label = say(`theme_${choice()}`);
    button.setAttribute("aria-label", label);
    button.title = label;
  });
}

export function cycleTheme() {
  const chosen = next[choice()];
  if (chosen === "system") delete root.dataset.theme;
  else root.dataset.theme = chosen;
  try {
    if (chosen === "system") localStorage.removeItem("theme");
    else localStorage.setItem("theme", chosen);
  } catch { /* storage is switched off: the choice lasts as long as the page */ }
  announce();
  document.dispatchEvent(new CustomEvent("themechange"));
}

export function startTheme() {
  announce();
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-switch]")) cycleTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("themechange")));
}

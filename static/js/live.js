// Polled fragments: when they were last true, and a plain word when the server cannot be reached.
import { relative, refreshTimes } from "./times.js";
import { say } from "./strings.js";

let updatedAt = Date.now();
let failures = 0;

export function heard() {
  updatedAt = Date.now();
  failures = 0;
  document.getElementById("connection").hidden = true;
}

export function lost() {
  failures += 1;
  // One failed poll may be a restarting web process; two in a row are worth a word.
  if (failures > 1) {
    const banner = document.getElementById("connection");
    banner.hidden = false;
    banner.querySelector("[data-text]").textContent = say("connection_lost", { ago: relative((Date.now() - updatedAt) / 1000) });
  }
}

function showAge() {
  const text = say("updated", { ago: relative((Date.now() - updatedAt) / 1000) });
  document.querySelectorAll("[data-updated]").forEach((element) => {
    if (element.textContent !== text) element.textContent = text;
  });
}

export function startLive() {
  document.addEventListener("htmx:afterOnLoad", heard);
  document.addEventListener("htmx:sendError", lost);
  document.addEventListener("htmx:timeout", lost);
  document.addEventListener("htmx:responseError", (event) => { if (event.detail.xhr.status >= 500) lost(); });
  document.addEventListener("htmx:beforeSwap", (event) => {
    // A session that ended turns a fragment into the sign-in page: show that page instead of swapping it in.
    const landed = new URL(event.detail.xhr.responseURL || location.href, location.href).pathname;
    if (landed.startsWith("/login")) {
      event.preventDefault();
      location.reload();
    }
  });
  document.addEventListener("htmx:afterSwap", (event) => refreshTimes(event.target.parentElement || document));
  // Polling rests while nobody looks.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.requestConfig.triggeringEvent === undefined && event.target.matches("[hx-trigger*='every']")) event.preventDefault();
  });
  setInterval(showAge, 1000);
  showAge();
}

// A file input one can also drop on: shows what was chosen and how far the upload is.
import { language, say } from "./strings.js";

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let value = bytes, unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value.toLocaleString(language, { maximumFractionDigits: value < 10 && unit ? 1 : 0 })} ${units[unit]}`;
}

function attach(zone) {
  const input = zone.querySelector("input[type=file]");
  const name = zone.querySelector("[data-file]");
  const form = zone.closest("form");
  const title = form.querySelector("[data-name-from-file]");

  const show = () => {
    const file = input.files[0];
    name.textContent = file ? `${file.name} · ${size(file.size)}` : name.dataset.file;
    if (file && title && !title.value) title.value = file.name.replace(/\.[^.]+$/, "").slice(0, 120);
  };
  input.addEventListener("change", show);
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, () => zone.setAttribute("data-over", ""));
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.removeAttribute("data-over"));

  form.addEventListener("submit", (event) => {
    if (event.defaultPrevented || !input.files.length) return;
    event.preventDefault();
    send(form, zone.parentElement.querySelector("[data-upload]"));
  });
  show();
}

// The same form by XMLHttpRequest, because only that tells how much was sent. The answer is a page, as without scripts.
function send(form, place) {
  const bar = place.querySelector("progress");
  const text = place.querySelector("[data-text]");
  const request = new XMLHttpRequest();
  const began = performance.now();
  place.hidden = false;
  request.upload.addEventListener("progress", (event) => {
    if (!event.lengthComputable) return;
    const share = event.loaded / event.total;
    const left = ((performance.now() - began) / 1000) * (1 - share) / Math.max(share, 0.001);
    bar.value = share;
    text.textContent = share < 1 ? say("uploading", { percent: Math.floor(share * 100), seconds: Math.ceil(left) }) : say("checking");
    if (share === 1) bar.removeAttribute("value");
  });
  request.addEventListener("load", () => {
    if (request.responseURL && new URL(request.responseURL).pathname !== new URL(form.action).pathname) {
      location.assign(request.responseURL);
      return;
    }
    // Refused: the same page with the message at its field.
    const page = new DOMParser().parseFromString(request.responseText, "text/html");
    const fresh = form.id && page.getElementById(form.id);
    if (!fresh) { location.reload(); return; }
    form.replaceWith(fresh);
    fresh.querySelectorAll("[data-drop]").forEach(attach);
    fresh.querySelector("[aria-invalid=true], input")?.focus();
  });
  request.addEventListener("error", () => {
    place.hidden = true;
    delete form.dataset.sent;
    form.querySelectorAll("[data-busy]").forEach((button) => { button.removeAttribute("data-busy"); button.removeAttribute("aria-disabled"); });
    document.dispatchEvent(new CustomEvent("toast", { detail: { text: say("upload_failed"), level: "error" } }));
  });
  request.open(form.method, form.action);
  request.send(new FormData(form));
}

export function startDropzones() {
  document.querySelectorAll("[data-drop]").forEach(attach);
}

// Dialogs, menus, copying, and the guard that makes a double click happen once.
import { say } from "./strings.js";
import { toast } from "./toasts.js";

const GUARD_MS = 15000;

function guard(event) {
  const form = event.target;
  if (form.method === "dialog" || form.matches("[data-download]")) return;  // a download leaves the page as it is
  if (form.dataset.sent) {
    event.preventDefault();
    event.stopImmediatePropagation();
    return;
  }
  form.dataset.sent = "1";
  // After the browser has read the pressed button's value: a disabled one would not be sent.
  setTimeout(() => {
    const button = event.submitter || form.querySelector("[type=submit], button:not([type])");
    button?.setAttribute("data-busy", "");
    button?.setAttribute("aria-disabled", "true");
  });
  setTimeout(() => release(form), GUARD_MS);
}

function release(form) {
  delete form.dataset.sent;
  form.querySelectorAll("[data-busy]").forEach((button) => {
    button.removeAttribute("data-busy");
    button.removeAttribute("aria-disabled");
  });
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const text = source ? source.textContent : button.dataset.copyText;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Plain http on another host has no clipboard: select the text so that the keyboard can copy it.
    if (!source) return;
    getSelection().selectAllChildren(source);
    toast(say("copy_by_hand"), "warning");
    return;
  }
  toast(say("copied"), "success");
}

export function startForms() {
  document.addEventListener("submit", guard);
  document.addEventListener("htmx:afterRequest", (event) => { if (event.target.matches?.("form")) release(event.target); });
  addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach(release));

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-dialog]");
    if (opener) document.getElementById(opener.dataset.dialog)?.showModal();
    if (event.target.closest("[data-dialog-close]")) event.target.closest("dialog").close();
    if (event.target instanceof HTMLDialogElement) event.target.close(); // the backdrop
    const copier = event.target.closest("[data-copy], [data-copy-text]");
    if (copier) copy(copier);
    document.querySelectorAll("details.menu[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const menu = event.target.closest?.("details.menu[open]");
    if (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  // Filters apply as they change; without scripts their button does it.
  document.addEventListener("change", (event) => {
    const form = event.target.form;
    if (form?.matches("[data-autosubmit]")) form.requestSubmit();
  });
}

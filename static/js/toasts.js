// Short notices. The server's own messages are already in the list; these only leave by themselves.
const LINGER_MS = 6000;

function leaveLater(toast) {
  if (!toast.matches(".toast-error, .toast-warning")) setTimeout(() => toast.remove(), LINGER_MS);
}

export function toast(text, level = "info") {
  const template = document.getElementById("toast-template");
  const list = document.querySelector(".toasts");
  if (!template || !list) return;
  const element = template.content.firstElementChild.cloneNode(true);
  element.classList.add(`toast-${level}`);
  element.querySelector("[data-text]").textContent = text;
  list.append(element);
  leaveLater(element);
}

export function startToasts() {
  document.querySelectorAll(".toast").forEach(leaveLater);
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-toast-close]")) event.target.closest(".toast").remove();
  });
  // A fragment's answer may carry `HX-Trigger: {"toast": {"text": …, "level": …}}`.
  document.addEventListener("toast", (event) => toast(event.detail.text, event.detail.level));
}

// The chat: sends a question, shows the answer as it comes, stops, asks again, rates.
import { pictures } from "./pictures.js";
import { language, say } from "./strings.js";
import { toast } from "./toasts.js";

const chat = document.getElementById("chat");
const thread = chat.querySelector("[data-thread]");
const composer = chat.querySelector("[data-composer]");
const field = composer.querySelector("textarea");
const stop = composer.querySelector("[data-stop]");
const send = composer.querySelector("[data-send]");
const refusal = composer.querySelector("[data-composer-error]");
let running = null; // the AbortController of the answer that is coming

document.documentElement.classList.add("has-script");

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const lines = buffer.slice(0, end).split("\n").filter((line) => line.startsWith("data:"));
      buffer = buffer.slice(end + 2);
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(5).trim()).join("\n"));
    }
  }
}

const nearEnd = () => innerHeight + scrollY > document.documentElement.scrollHeight - 120;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

function refuse(text) {
  refusal.hidden = !text;
  refusal.querySelector("[data-text]").textContent = text || "";
  field.toggleAttribute("aria-invalid", Boolean(text));
}

const picture = pictures(composer, chat.querySelector(".chat-main"), refuse);

function fresh(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function latency(ms) {
  return ms < 10000 ? `${ms.toLocaleString(language, { maximumFractionDigits: ms < 10 ? 1 : 0 })} ms` : `${(ms / 1000).toLocaleString(language, { maximumFractionDigits: 1 })} s`;
}

function busy(on) {
  stop.hidden = !on;
  send.hidden = on;
  chat.toggleAttribute("data-busy", on);
}

function begin(answer, event) {
  answer.dataset.answer = event.answer;
  answer.querySelector("[data-phases]")?.setAttribute("href", `/monitoring/requests/${event.answer}/`);
  const badge = answer.querySelector("[data-version]");
  badge.textContent = event.version_name;
  badge.className = `version v-c${event.colour}`;
  if (chat.dataset.conversation === event.conversation) return;
  chat.dataset.conversation = event.conversation;
  history.replaceState(null, "", `${chat.dataset.page}${event.conversation}/`);
}

function list(question) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  const text = document.createElement("span");
  link.className = "place";
  link.href = location.pathname;
  link.setAttribute("aria-current", "page");
  text.className = "clip";
  text.textContent = question;
  link.append(text);
  item.append(link);
  chat.querySelector("[data-list]").prepend(item);
  chat.querySelector("h1").textContent = question;
}

function finish(answer, event) {
  answer.querySelector("[data-foot]").hidden = false;
  if (event?.latency_ms !== undefined) answer.querySelector("[data-latency]").textContent = latency(event.latency_ms);
  answer.querySelector("[data-cached]").hidden = !event?.cached;
}

function fail(answer, text) {
  answer.querySelector("[data-error]").hidden = false;
  answer.querySelector("[data-error-text]").textContent = text;
  answer.querySelector("[data-rate]")?.setAttribute("hidden", ""); // there is nothing to rate
}

// What was asked goes back to where it was typed, before what was typed since.
function giveBack({ message, image }) {
  if (message === undefined) return;
  field.value = field.value.trim() ? `${message}\n${field.value}` : message;
  if (image) picture.give(image);
  grow();
}

async function ask(body, turn) {
  const answer = fresh("answer-template");
  const text = answer.querySelector("[data-text]");
  const isNew = !chat.dataset.conversation;
  const begun = () => Boolean(answer.dataset.answer);
  const nothingAsked = () => { (body.message === undefined ? answer : turn).remove(); giveBack(body); };
  let ended = false;
  answer.setAttribute("data-coming", "");
  turn.append(answer);
  toEnd();
  running = new AbortController();
  busy(true);
  try {
    const response = await fetch(chat.dataset.url, {
      method: "POST", signal: running.signal,
      headers: { "Content-Type": "application/json", Accept: "text/event-stream", "X-CSRFToken": chat.dataset.csrf },
      body: JSON.stringify({ ...body, conversation: chat.dataset.conversation || null }),
    });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      nothingAsked();
      refuse(problem.detail || say("chat_lost"));
      return;
    }
    for await (const event of events(response)) {
      const follow = nearEnd();
      if (event.answer) {
        begin(answer, event);
        if (isNew && body.message) list(body.message);
      } else if (event.text) text.textContent += event.text;
      else if (event.error) { fail(answer, event.error); finish(answer); }
      else if (event.done) finish(answer, event);
      ended ||= Boolean(event.error || event.done);
      if (follow) toEnd();
    }
    if (!ended) throw new Error("cut off");
  } catch (error) {
    if (error.name === "AbortError" && begun()) {
      answer.querySelector("[data-stopped]").hidden = false;
      finish(answer);
    } else if (error.name === "AbortError") nothingAsked();
    else if (begun()) { // nobody knows whether it is remembered: it is asked anew
      fail(answer, say(body.message === undefined ? "chat_lost" : "chat_cut"));
      giveBack(body);
    } else {
      nothingAsked();
      refuse(say("chat_lost"));
    }
  } finally {
    answer.removeAttribute("data-coming");
    running = null;
    busy(false);
    field.focus({ preventScroll: true });
  }
}

function askAbout(question) {
  const message = question.trim();
  if (!message || running) return;
  refuse("");
  chat.querySelector("[data-empty]")?.remove();
  const turn = fresh("turn-template");
  const image = picture.take();
  const shown = turn.querySelector("[data-shown]");
  turn.querySelector("[data-question]").textContent = message;
  if (image) shown.src = image;
  shown.hidden = !image;
  thread.append(turn);
  field.value = "";
  grow();
  ask({ message, image }, turn);
}

async function rate(answer, given) {
  const response = await fetch(chat.dataset.rateUrl, {
    method: "POST", headers: { "Content-Type": "application/json", "X-CSRFToken": chat.dataset.csrf },
    body: JSON.stringify({ answer: answer.dataset.answer, ...given }),
  }).catch(() => null);
  if (!response?.ok) {
    const problem = await response?.json().catch(() => ({}));
    toast(problem?.detail || say("chat_lost"), "error");
    return false;
  }
  return true;
}

function showRating(answer, rating) {
  answer.dataset.rating = rating;
  answer.querySelectorAll("[data-rate] button").forEach((button) => {
    button.toggleAttribute("data-on", Number(button.value) <= rating);
    button.setAttribute("aria-pressed", String(Number(button.value) === rating));
  });
}

async function rateWith(answer, rating) {
  const before = Number(answer.dataset.rating || 0);
  showRating(answer, rating); // at once; taken back where it is refused
  if (await rate(answer, { rating })) {
    const comment = answer.querySelector("[data-comment]");
    if (comment) comment.hidden = false;
  } else showRating(answer, before);
}

function grow() {
  field.rows = 1;
  while (field.rows < 8 && field.scrollHeight > field.clientHeight) field.rows += 1;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  event.stopPropagation();
  askAbout(event.submitter?.value || field.value);
});
field.addEventListener("input", grow);
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    askAbout(field.value);
  }
});
stop.addEventListener("click", () => running?.abort());

thread.addEventListener("submit", async (event) => {
  const answer = event.target.closest("[data-answer]");
  event.preventDefault();
  event.stopPropagation();
  if (event.target.matches("[data-rate]")) rateWith(answer, Number(event.submitter.value));
  if (event.target.matches("[data-comment]")) {
    const { comment, correction } = Object.fromEntries(new FormData(event.target));
    if (await rate(answer, { rating: Number(answer.dataset.rating), comment, correction })) {
      event.target.hidden = true;
      toast(say("chat_thanks"), "success");
    }
  }
});
thread.addEventListener("click", (event) => {
  const answer = event.target.closest("[data-answer]");
  if (!answer) return;
  if (event.target.closest("[data-again]") && !running && answer.dataset.answer) ask({ replaces: answer.dataset.answer }, answer.closest(".turn"));
  if (event.target.closest("[data-copy-answer]")) {
    navigator.clipboard?.writeText(answer.querySelector("[data-text]").textContent).then(() => toast(say("copied"), "success"), () => toast(say("copy_by_hand"), "warning"));
  }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "Escape" && running) running.abort();
  const digit = /^Digit([1-5])$/.exec(event.code || "")?.[1];
  if (!digit || event.ctrlKey || event.metaKey || (typing && !event.altKey)) return;
  const answers = thread.querySelectorAll("[data-answer]:not([data-answer=''])");
  const last = answers[answers.length - 1];
  if (last?.querySelector("[data-rate]")) {
    event.preventDefault();
    rateWith(last, Number(digit));
  }
});
if (thread.querySelector(".turn")) toEnd();

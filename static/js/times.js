// Keeps relative times true and puts clock times into the reader's own zone.
import { language, say } from "./strings.js";

const exact = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "long" });
const clock = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", hour12: false });
const day = new Intl.DateTimeFormat(language, { month: "short", day: "numeric" });
const DAY = 86400;

export function relative(seconds) {
  if (seconds < 3) return say("now");
  if (seconds < 60) return say("seconds_ago", { n: Math.floor(seconds) });
  if (seconds < 3600) return say("minutes_ago", { n: Math.floor(seconds / 60) });
  if (seconds < DAY) return say("hours_ago", { n: Math.floor(seconds / 3600) });
  return say("days_ago", { n: Math.floor(seconds / DAY) });
}

export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return say("seconds", { n: total });
  if (total < 3600) return say("minutes_seconds", { m: Math.floor(total / 60), s: total % 60 });
  return say("hours_minutes", { h: Math.floor(total / 3600), m: Math.floor((total % 3600) / 60) });
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function refreshTimes(scope = document) {
  const now = Date.now();
  scope.querySelectorAll("time[data-ago], time[data-clock]").forEach((element) => {
    const moment = new Date(element.dateTime);
    const age = (now - moment) / 1000;
    element.title = exact.format(moment);
    if ("clock" in element.dataset) write(element, age < DAY ? clock.format(moment) : day.format(moment));
    else if (age < 30 * DAY) write(element, relative(age));
    else write(element, day.format(moment));
  });
  // A running job's time so far counts up between two answers of the server.
  scope.querySelectorAll("time[data-since]").forEach((element) => write(element, duration((now - new Date(element.dateTime)) / 1000)));
}

export function startTimes() {
  refreshTimes();
  setInterval(() => { if (!document.hidden) refreshTimes(); }, 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refreshTimes(); });
}

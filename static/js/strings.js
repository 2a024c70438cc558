// Words the server translated for these modules (a JSON data block in the base template).
const words = JSON.parse(document.getElementById("strings")?.textContent || "{}");

export const language = document.documentElement.lang || "en";

export function say(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

// Blocking and tiny: the stored theme is on the root before the first paint.
(function () {
  document.documentElement.classList.add("has-script"); // what only works with scripts is hidden without
  var choice = null;
  try { choice = localStorage.getItem("theme"); } catch (_) { /* storage is switched off: follow the system */ }
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
})();

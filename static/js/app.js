// The one entry of every page; the rest is loaded only where the page has a use for it.
import { startForms } from "./forms.js";
import { startLive } from "./live.js";
import { startPalette } from "./palette.js";
import { startTheme } from "./theme.js";
import { startTimes } from "./times.js";
import { startToasts } from "./toasts.js";

startTheme();
startTimes();
startToasts();
startForms();
startPalette();
if (document.getElementById("connection")) startLive();
if (document.querySelector("[data-drop]")) import("./dropzone.js").then((module) => module.startDropzones());
if (document.querySelector("[data-chart]")) import("./charts.js").then((module) => module.startCharts());

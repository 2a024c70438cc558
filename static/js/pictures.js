// A picture for the next question: chosen, pasted or dropped; shown small until it is sent or taken away.
import { say } from "./strings.js";

const LARGEST_SIDE = 256; // what the portal keeps; models see less
const SENT_AS_IT_IS = 100_000; // bytes

const KINDS = ["image/png", "image/jpeg"];

function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function small(file) {
  const bitmap = await createImageBitmap(file); // throws for what is no picture
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= SENT_AS_IT_IS && KINDS.includes(file.type)) return asDataUrl(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

// `refuse` is told what is wrong, in words, or nothing. What is returned takes the picture for a question, and gives one back.
export function pictures(composer, place, refuse) {
  const shown = composer.querySelector("[data-attached]");
  const thumbnail = shown.querySelector("img");
  const input = composer.querySelector("[data-picture]");
  let picture = null;

  function show(url) {
    picture = url;
    shown.hidden = !url;
    if (url) thumbnail.src = url;
    else thumbnail.removeAttribute("src");
    if (input) input.value = "";
  }
  async function add(file) {
    if (!file) return;
    try {
      show(await small(file));
      refuse("");
    } catch {
      refuse(say("no_picture"));
    }
    composer.querySelector("textarea").focus();
  }
  const pictureIn = (data) => [...(data?.files || [])].find((file) => file.type.startsWith("image/"));

  input?.addEventListener("change", () => add(input.files[0]));
  composer.querySelector("[data-detach]").addEventListener("click", () => show(null));
  composer.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (file) event.preventDefault();
    add(file);
  });
  for (const kind of ["dragenter", "dragover"]) {
    place.addEventListener(kind, (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      composer.setAttribute("data-over", "");
    });
  }
  place.addEventListener("dragleave", () => composer.removeAttribute("data-over"));
  place.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    composer.removeAttribute("data-over");
    const file = pictureIn(event.dataTransfer);
    if (file) add(file);
    else refuse(say("no_picture"));
  });
  return {
    take() {
      const taken = picture;
      show(null);
      return taken;
    },
    give: show,
  };
}

// The page: what its few elements do.

import { Server } from "./api.js";
import { Conversation } from "./conversation.js";

const part = (id) => document.getElementById(id);
const [question, slider, send, notice] = ["question", "keep", "send", "notice"].map(part);
const server = new Server(askKey);
const conversation = new Conversation(server, part("turns"), refresh);

let models = [];
let pending = []; // pictures of the next question, as data URLs
let budget; // undefined until the slider is moved: the bundle's own
let moved = 0; // a timer: the slider rests before the question is asked again

const model = () => models[part("model").selectedIndex];

async function start() {
  try {
    models = await server.models();
  } catch (error) {
    notice.textContent = error.message;
    return;
  }
  part("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  part("model").disabled = models.length < 2;
  takeModel();
}

/** The slider's range is the model's. */
function takeModel() {
  const stage = model().star?.stages?.at(-1);
  part("budget").hidden = !stage;
  budget = undefined;
  if (!stage) return;
  slider.max = stage.max_keep;
  slider.value = stage.keep;
  showBudget();
}

function showBudget() {
  part("kept").textContent = slider.value;
}

async function ask() {
  const text = question.value.trim();
  notice.textContent = "";
  if (!pending.length && !conversation.pictures.length) {
    notice.textContent = "Choose a picture first.";
    document.querySelector(".choose:not([hidden])").focus();
    return;
  }
  if (!model()) await start(); // the server was away, or no key was given, when the page was opened
  if (!text || !model()) return question.focus();
  const pictures = pending;
  pending = [];
  question.value = "";
  fit();
  const answered = await conversation.ask(model(), text, pictures, budget);
  if (!answered && conversation.turns.length && !question.value) {
    question.value = text;
    if (!pending.length) pending = pictures;
    refresh();
  }
}

/** Ask the last question with the slider's budget, once it rests and the first answer is there. */
function askAgain() {
  clearTimeout(moved);
  budget = Number(slider.value);
  moved = setTimeout(() => {
    const { last } = conversation;
    if (!last || last.answers.at(-1).keep === budget) return;
    if (conversation.busy && last.answers.length < 2) return askAgain();
    if (last.said) conversation.again(model(), budget);
  }, 400);
}

function restart(keepSeen = false) {
  clearTimeout(moved);
  conversation.clear(keepSeen);
  notice.textContent = "";
  refresh();
}

/** Pictures from anywhere: chosen, dropped or pasted. */
async function takePictures(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  notice.textContent = pictures.length < files.length ? "Only pictures can be asked about." : "";
  if (!pictures.length) return;
  const read = (await Promise.allSettled(pictures.map(dataUrl))).map(({ value }) => value);
  const urls = read.filter(Boolean);
  if (urls.length < read.length) notice.textContent = "A picture cannot be read.";
  const most = model()?.star?.max_images ?? Infinity;
  if (conversation.pictures.length + pending.length + urls.length > most) {
    // There is no room beside the pictures of before: these begin a conversation of their own.
    if (conversation.turns.length) restart(true);
    pending = pending.slice(0, Math.max(0, most - urls.length));
  }
  pending.push(...urls);
  refresh();
  question.focus();
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** What depends on the conversation and on the pictures that wait. */
function refresh() {
  const { busy, turns } = conversation;
  const begun = part("turns").childElementCount > 0;
  document.body.classList.toggle("begun", begun);
  document.body.classList.toggle("pictured", pending.length > 0);
  part("welcome").hidden = begun || pending.length > 0;
  part("compose").hidden = !part("welcome").hidden;
  part("new").hidden = !begun;
  send.textContent = busy ? "Stop" : "Ask";
  part("status").textContent = busy ? "Answering" : turns.length ? "Done" : "";
  question.placeholder = turns.length ? "Ask another question" : "Ask a question";
  const items = pending.map((url, index) => {
    const [item, picture, remove] = ["li", "img", "button"].map((kind) => document.createElement(kind));
    Object.assign(picture, { src: url, alt: `Picture ${index + 1}` });
    Object.assign(remove, { type: "button", textContent: "×", ariaLabel: `Remove picture ${index + 1}` });
    remove.addEventListener("click", () => {
      pending.splice(index, 1);
      refresh();
      question.focus();
    });
    item.append(picture, remove);
    return item;
  });
  part("pending").replaceChildren(...items);
}

/** The field is as high as what is in it. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

/** Resolves to the key that was typed; "" if there is none. */
function askKey(reason) {
  const dialog = part("key");
  part("key-reason").textContent = reason;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        resolve(dialog.returnValue === "use" ? part("api-key").value : "");
        part("api-key").value = "";
      },
      { once: true },
    );
  });
}

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (conversation.busy) conversation.stop();
  else ask();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!conversation.busy) ask();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !part("key").open) conversation.stop();
});
part("key-cancel").addEventListener("click", () => part("key").close());
slider.addEventListener("input", showBudget);
slider.addEventListener("change", askAgain);
part("stay").addEventListener("change", (event) => {
  conversation.stays = event.target.checked;
});
part("new").addEventListener("click", () => {
  restart();
  document.querySelector(".choose").focus();
});
part("model").addEventListener("change", () => {
  restart();
  takeModel();
});
for (const button of document.querySelectorAll(".choose"))
  button.addEventListener("click", () => part("files").click());
part("files").addEventListener("change", (event) => {
  takePictures(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) takePictures(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  takePictures(event.dataTransfer.files);
});

start();

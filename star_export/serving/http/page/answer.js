// One answer on the page: its text as it comes, the pictures with what was kept of them, what it took.

import { drawView } from "./patches.js";

const FACTS = ["First token", "In all", "Speed", "KV cache saved"];

export class Answer {
  text = "";
  keep;
  #star = null;
  #usage = null;
  #part;

  /** keep: the budget that was asked for; undefined is the bundle's own. pictures: data URLs. */
  constructor(keep, pictures) {
    this.keep = keep;
    this.element = fromTemplate("answer");
    this.#part = (selector) => this.element.querySelector(selector);
    this.element.setAttribute("aria-label", keep ? `Answer from ${keep} visual tokens` : "Answer");
    const picture = document.createElement("img");
    Object.assign(picture, { src: pictures.at(-1), alt: "The picture, as it was chosen" });
    this.#part(".frame").append(picture);
    this.#facts({});
  }

  /** Put in a chunk of a chat completion. */
  take(chunk) {
    const [{ delta, finish_reason: reason } = {}] = chunk.choices;
    const piece = delta?.content;
    if (piece) {
      this.text += piece;
      this.#part(".text").append(piece);
    }
    if (reason === "length") this.#say("The answer is as long as it may be.");
    this.#usage = chunk.usage ?? this.#usage;
    this.#star = chunk.star ?? this.#star;
  }

  /** The answer is whole: show what it took. */
  end() {
    this.#part(".text").setAttribute("aria-busy", "false");
    if (!this.text) this.#say("The answer is empty.");
    if (this.#star) this.#facts(this.#numbers());
  }

  /** The answer will not be whole; the server's words, or none where it was stopped. */
  fail(message) {
    this.#part(".text").setAttribute("aria-busy", "false");
    this.#part("dl").hidden = true;
    if (message) this.#part(".error").textContent = message;
    else this.#say("Stopped.");
  }

  /** What the views of the pictures are called. */
  get views() {
    return viewNames(this.#star?.views ?? []);
  }

  /** Draw in one of the views what a stage kept, both by index; stage -1 draws the picture alone. */
  show(index, view) {
    if (!this.#star) return;
    const all = this.#usage.prompt_tokens_details.star.patches;
    const stage = this.#star.stages[index];
    const count = `${stage ? stage.kept.length : all}`;
    const rest = stage ? `of ${all} visual tokens kept` : "visual tokens";
    const shown = this.#star.views[view];
    const label = `Picture ${shown.image + 1}: ${count} ${rest}`;
    this.#part(".frame").replaceChildren(drawView(shown, stage ? new Set(stage.kept) : null, label));
    this.#part("figcaption strong").textContent = count;
    this.#part("figcaption span").textContent = rest;
  }

  #numbers() {
    const { timings_ms: took, kv_bytes: kept, kv_bytes_unpruned: whole } = this.#star;
    const tokens = this.#usage?.completion_tokens ?? 0;
    const share = Math.round((100 * (whole - kept)) / whole);
    return {
      "First token": took && firstToken(took),
      "In all": took && milliseconds(took.total),
      Speed: took && tokens > 1 && `${Math.round((1000 * (tokens - 1)) / (took.total - took.ttft))} tokens/s`,
      "KV cache saved": whole && `${bytes(whole - kept)}, ${share} %`,
    };
  }

  #facts(numbers) {
    const rows = FACTS.map((name) => {
      const row = document.createElement("div");
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, value.textContent] = [name, numbers[name] || "–"];
      row.append(term, value);
      return row;
    });
    this.#part("dl").replaceChildren(...rows);
  }

  #say(words) {
    const note = document.createElement("p");
    note.className = "hint";
    note.textContent = words;
    this.#part(".text").after(note);
  }
}

let groups = 0;

/** Radio buttons, one of them chosen; `onChoice(index)` hears of another. */
export function choice(fieldset, names, chosen, onChoice) {
  const group = `choice-${groups++}`;
  const labels = names.map((name, index) => {
    const [label, input, text] = ["label", "input", "span"].map((kind) => document.createElement(kind));
    Object.assign(input, { type: "radio", name: group, checked: index === chosen });
    input.addEventListener("change", () => onChoice(index));
    text.textContent = name;
    label.append(input, text);
    return label;
  });
  fieldset.replaceChildren(fieldset.querySelector("legend"), ...labels);
}

/** A copy of what a template holds. */
export function fromTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function viewNames(views) {
  const several = views.some((view) => view.image > 0);
  return views.map((view, index) => {
    const alone = views.filter((other) => other.image === view.image).length === 1;
    const part = views[index - 1]?.image === view.image ? "tiles" : "whole";
    const number = several ? `${view.image + 1}` : "";
    return [number, alone && several ? "" : part].filter(Boolean).join(" ");
  });
}

/** A picture that was asked about before is not looked at again: what comes from that is told apart. */
function firstToken({ ttft, vision }) {
  return milliseconds(ttft) + (vision >= 1 ? `, ${milliseconds(vision)} for the picture` : "");
}

function milliseconds(value) {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function bytes(value) {
  const power = Math.min(3, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${Number((value / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB"][power]}`;
}

// A conversation: its turns, what of them the server is told, and the one answer that is on its way.

import { Answer, choice, fromTemplate } from "./answer.js";

/** One question with its answer, or with two, from two budgets. */
class Turn {
  answers = [];
  #stage;
  #view = 0;

  constructor(question, pictures, seen, stages) {
    Object.assign(this, { question, pictures, seen });
    this.element = fromTemplate("turn");
    this.element.querySelector("h2").textContent = question;
    this.#stage = stages.length - 1;
    const fieldset = this.element.querySelector(".stages");
    fieldset.hidden = !stages.length;
    choice(fieldset, ["picture", ...stages.map(({ name }) => name)], stages.length, (index) => {
      this.#stage = index - 1;
      this.show();
    });
  }

  /** Draw the stage and the view that are chosen, of every answer. */
  show() {
    for (const answer of this.answers) answer.show(this.#stage, this.#view);
  }

  /** An answer is whole: draw it. */
  end(answer) {
    answer.end();
    const fieldset = this.element.querySelector(".views");
    const { views } = answer;
    if (fieldset.hidden && views.length > 1) {
      fieldset.hidden = false;
      choice(fieldset, views, 0, (index) => {
        this.#view = index;
        this.show();
      });
    }
    this.show();
  }

  /** Another answer; the first one stays beside it. */
  begin(keep) {
    this.answers.splice(1);
    const answer = new Answer(keep, this.seen);
    this.answers.push(answer);
    this.element.querySelector(".answers").replaceChildren(...this.answers.map((one) => one.element));
    this.element.classList.toggle("compared", this.answers.length > 1);
    return answer;
  }

  /** What counts as this turn's answer in what follows. */
  get said() {
    return this.answers.findLast((answer) => answer.text && !answer.refused)?.text;
  }
}

export class Conversation {
  turns = [];
  stays = false; // whether what follows keeps the patches that the question with the last picture chose
  #server;
  #log;
  #controller = null;

  /** onChange() is called when an answer begins and when it ends. */
  constructor(server, log, onChange) {
    this.#server = server;
    this.#log = log;
    this.onChange = onChange;
  }

  get busy() {
    return this.#controller !== null;
  }

  get last() {
    return this.turns.at(-1);
  }

  /** Pictures of all questions that were answered, or are being. */
  get pictures() {
    const counts = (turn) => turn.said || (this.busy && turn === this.last);
    return this.turns.filter(counts).flatMap((turn) => turn.pictures);
  }

  /** Ask a question; resolves when its answer has ended, to whether there is anything of one. */
  async ask(model, question, pictures, keep) {
    const turn = new Turn(question, pictures, [...this.pictures, ...pictures], model.star?.stages ?? []);
    const before = this.turns.filter((one) => one.said);
    this.turns = [...before, turn];
    this.#log.append(turn.element);
    return this.#answer(model, turn, keep);
  }

  /** Ask the last question with another budget, beside its first answer. */
  async again(model, keep) {
    if (this.last.answers.length > 1) this.stop();
    return this.#answer(model, this.last, keep);
  }

  /** Let go of the answer that is on its way. */
  stop() {
    this.#controller?.abort();
  }

  /** Forget everything; `keepSeen` leaves it to be read. */
  clear(keepSeen = false) {
    this.stop();
    this.turns = [];
    if (keepSeen) this.#log.append(document.createElement("hr"));
    else this.#log.replaceChildren();
  }

  async #answer(model, turn, keep) {
    const controller = new AbortController();
    const messages = this.#messages(turn);
    const answer = turn.begin(keep);
    turn.element.scrollIntoView();
    this.#controller = controller;
    this.onChange();
    try {
      const body = { model: model.id, messages, show: true, ...(keep && { keep }), ...(this.stays && { reprune: false }) };
      for await (const chunk of this.#server.stream(body, controller.signal)) answer.take(chunk);
      turn.end(answer);
    } catch (error) {
      const stopped = error.name === "AbortError";
      answer.refused = !stopped;
      answer.fail(stopped ? "" : error.message);
    } finally {
      if (this.#controller === controller) this.#controller = null;
      this.onChange();
    }
    return Boolean(turn.said);
  }

  /** The turns up to one, as the API takes them. */
  #messages(upTo) {
    return this.turns.slice(0, this.turns.indexOf(upTo) + 1).flatMap((turn) => [
      { role: "user", content: content(turn) },
      ...(turn === upTo ? [] : [{ role: "assistant", content: turn.said }]),
    ]);
  }
}

function content({ question, pictures }) {
  const parts = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  return [...parts, { type: "text", text: question }];
}

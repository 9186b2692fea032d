// Writing. Each room keeps its draft; Enter sends, Shift and Enter make a line.

import { $ } from "../dom.js";

const TYPING_EVERY_MS = 2_000;

export class Composer {
  #store;
  #actions;
  #drafts = new Map();
  #room = null;
  #told = 0;

  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    const text = $("text");
    text.addEventListener("input", () => this.#input());
    text.addEventListener("keydown", (event) => {
      // On a phone Enter makes a line and the button sends; while a syllable is composed it belongs to the input method.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
      event.preventDefault();
      this.#send();
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    store.addEventListener("current", () => this.#switch());
  }

  #switch() {
    const text = $("text");
    if (this.#room !== null) this.#drafts.set(this.#room, text.value);
    this.#room = this.#store.current;
    text.value = this.#drafts.get(this.#room) ?? "";
    this.#told = 0;
    requestAnimationFrame(() => this.#fit()); // once the conversation is drawn, and the composer with it
  }

  #input() {
    this.#fit();
    if ($("text").value.trim() && Date.now() - this.#told > TYPING_EVERY_MS) {
      this.#told = Date.now();
      this.#actions.typing(this.#room);
    }
  }

  #send() {
    const text = $("text");
    const body = text.value.trim();
    if (!body || this.#room === null) return;
    this.#actions.send(this.#room, body);
    text.value = "";
    this.#told = 0;
    this.#fit();
    text.focus();
  }

  #fit() {
    const text = $("text");
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight, 160)}px`;
    $("send").disabled = !text.value.trim();
  }
}

// Who is signed in on this tab. The token lives in sessionStorage: two tabs may be two people, and closing the tab ends
// it. It is renewed well before it ends; `renewed` tells the connection.

import { ask } from "./api.js";

const KEY = "quay-session";
const WHY = "quay-session-ended";
const RENEW_AT = 0.6; // of its life
const RETRY_MS = 5_000;

export class Session extends EventTarget {
  #timer = 0;
  #said = null;

  constructor() {
    super();
    try {
      this.#said = JSON.parse(sessionStorage.getItem(KEY));
    } catch {
      this.#said = null;
    }
    if (this.#said) this.#plan();
  }

  get token() {
    return this.#said?.token ?? null;
  }

  get user() {
    return this.#said?.user ?? null;
  }

  async begin(path, body) {
    this.#keep(await ask("POST", path, { body }));
  }

  // `why`: a sentence for who is signed out without having asked for it.
  end(why = "") {
    clearTimeout(this.#timer);
    this.#said = null;
    sessionStorage.removeItem(KEY);
    if (why) sessionStorage.setItem(WHY, why);
    this.dispatchEvent(new CustomEvent("ended", { detail: { asked: !why } }));
  }

  // What `end` of the page before had to say.
  static lastWords() {
    const why = sessionStorage.getItem(WHY) ?? "";
    sessionStorage.removeItem(WHY);
    return why;
  }

  ask(method, path, body) {
    return ask(method, path, { body, token: this.token });
  }

  async renew() {
    try {
      this.#keep(await this.ask("POST", "/api/session/renew"));
      this.dispatchEvent(new Event("renewed"));
    } catch (error) {
      if (error.status === 401) this.end(error.message);
      else this.#timer = setTimeout(() => this.renew(), RETRY_MS);
    }
  }

  #keep(said) {
    this.#said = { ...said, until: Date.now() + said.expires_in_s * 1000 };
    sessionStorage.setItem(KEY, JSON.stringify(this.#said));
    this.#plan();
  }

  #plan() {
    clearTimeout(this.#timer);
    const early = this.#said.expires_in_s * 1000 * (1 - RENEW_AT);
    this.#timer = setTimeout(() => this.renew(), Math.max(0, this.#said.until - early - Date.now()));
  }
}

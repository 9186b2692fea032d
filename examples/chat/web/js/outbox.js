// Messages on their way. Each gets its name (`client_id`) once and keeps it however often it is sent, so the service
// stores it once. They leave one after the other, in the order of writing, and survive a reload of the page.

const KEY = "quay-outbox";
const PASSING = new Set(["offline", "unavailable"]);
const RETRY_MS = 1_500;

export class Outbox {
  #store;
  #ask;
  #running = false;
  #timer = 0;

  constructor(store, ask) {
    this.#store = store;
    this.#ask = ask;
    store.addEventListener("messages", () => this.#keep());
  }

  // Take up what an earlier page of this tab had not brought out.
  restore() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY)) ?? [];
      this.#store.outgoing = kept.filter((one) => one.user === this.#store.me.id);
    } catch {
      this.#store.outgoing = [];
    }
    this.#store.changed("messages");
  }

  send(room, body) {
    const state = this.#store.connection.state === "live" ? "sending" : "waiting";
    const message = { client_id: crypto.randomUUID?.() ?? uuid(), room, body, at: Date.now(), state, user: this.#store.me.id };
    this.#store.outgoing.push(message);
    this.#store.changed("messages");
    this.pump();
  }

  retry(clientId) {
    const message = this.#find(clientId);
    if (message) message.state = "sending";
    this.#store.changed("messages");
    this.pump();
  }

  discard(clientId) {
    this.#store.settle(clientId);
    this.#store.changed("messages");
  }

  async pump() {
    if (this.#running) return;
    this.#running = true;
    clearTimeout(this.#timer);
    try {
      let message;
      while ((message = this.#store.outgoing.find((one) => one.state !== "failed"))) {
        if (!(await this.#bring(message))) break;
      }
    } finally {
      this.#running = false;
    }
  }

  async #bring(message) {
    const { client_id, room, body } = message;
    try {
      this.#store.add(await this.#ask("send", { client_id, room, body }));
      return true;
    } catch (error) {
      if (!this.#find(client_id)) return true; // it was told to the room before the answer was lost
      const passing = PASSING.has(error.code);
      message.state = passing ? "waiting" : "failed";
      message.error = error.message;
      this.#store.changed("messages");
      if (passing) this.#timer = setTimeout(() => this.pump(), RETRY_MS);
      return !passing;
    }
  }

  #find(clientId) {
    return this.#store.outgoing.find((one) => one.client_id === clientId);
  }

  #keep() {
    sessionStorage.setItem(KEY, JSON.stringify(this.#store.outgoing));
  }
}

// crypto.randomUUID exists only where the page is secure: over https, or from this very machine.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

// Which instance serves this page, and what is wrong if none does.

import { $, eachFrame, h, shortName, show } from "../dom.js";

const PATIENCE_MS = 1_500; // a change of instance is quicker than this and no trouble

export class Fleet {
  #store;
  #look;
  #timer = 0;

  constructor(store, look) {
    this.#store = store;
    this.#look = look;
    store.addEventListener("connection", eachFrame(() => this.#draw()));
    const button = $("connection");
    button.addEventListener("click", () => this.#toggle($("fleet").hidden));
    document.addEventListener("click", (event) => !event.target.closest(".fleet-box") && this.#toggle(false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || $("fleet").hidden) return;
      this.#toggle(false);
      button.focus();
    });
  }

  #toggle(open) {
    if (open) this.#look(); // the instances as they are now
    show($("fleet"), open);
    $("connection").setAttribute("aria-expanded", String(open));
  }

  #draw() {
    const { state, servedBy, instances } = this.#store.connection;
    const pill = $("connection");
    pill.dataset.state = state;
    if (state === "live") {
      pill.dataset.instance = servedBy.instance;
      pill.dataset.pid = servedBy.pid;
    }
    const live = state === "live";
    $("connection-label").textContent = live ? `Instance ${shortName(servedBy.instance)}` : state === "offline" ? "Offline" : "Connecting";
    $("connection-detail").textContent = live ? `${servedBy.framework} · pid ${servedBy.pid}` : "";
    if (servedBy) $("kill-line").textContent = `kill -9 ${servedBy.pid}`;
    $("instances").replaceChildren(...instances.map((one) => this.#instance(one, servedBy)));
    if (live) {
      clearTimeout(this.#timer);
      this.#timer = 0;
      show($("trouble"), false);
    } else if ($("trouble").hidden) this.#timer ||= setTimeout(() => this.#complain(), PATIENCE_MS); // since the loss, whatever is tried
    else this.#complain();
  }

  #complain() {
    const offline = this.#store.connection.state === "offline";
    $("trouble").textContent = offline ? "You are offline. What you write is kept and sent later." : "The connection was lost and is being made again. What you write is kept and sent then.";
    show($("trouble"), true);
  }

  #instance({ name, pid, users }, servedBy) {
    const mine = servedBy?.instance === name;
    const people = `${users} online`;
    return h("li", { "data-mine": String(mine) }, h("b", {}, `Instance ${shortName(name)}`), h("span", {}, `pid ${pid} · ${people}${mine ? " · you" : ""}`));
  }
}

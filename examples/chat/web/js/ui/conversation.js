// The open room: its messages, those on their way, who is typing.

import { $, arrange, avatar, dayKey, dayName, eachFrame, h, icon, show, timeOf, wholeTimeOf } from "../dom.js";

const GROUP_MS = 5 * 60_000; // messages of one person that follow so soon stand together
const NEAR_PX = 80; // so near the end, new messages scroll into view

export class Conversation {
  #store;
  #actions;
  #rows = new Map(); // key -> element of the open room
  #room = null;
  #readUpTo = 0; // what was read when the room was opened: the line "New" stands there
  #atEnd = true;
  #seen = 0; // the newest number that was in view

  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    const draw = eachFrame(() => this.#draw());
    for (const what of ["messages", "current", "connection"]) store.addEventListener(what, draw);
    store.addEventListener("rooms", eachFrame(() => this.#drawHead()));
    store.addEventListener("typing", eachFrame(() => this.#drawTyping()));
    const log = $("log-scroll");
    log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#atEnd && this.#toEnd()).observe(log);
    $("older").addEventListener("click", () => this.#actions.older());
    $("new-below").addEventListener("click", () => this.#toEnd());
    document.addEventListener("visibilitychange", () => this.#markRead());
  }

  #draw() {
    const room = this.#store.room();
    if (room?.id !== this.#room?.id) this.#switch(room);
    this.#room = room;
    this.#drawHead();
    if (!room) return this.#drawNothing();
    const log = $("log-scroll");
    const height = log.scrollHeight;
    const first = $("messages").firstElementChild;
    const rows = this.#rowsOf(room);
    arrange($("messages"), rows);
    show($("older"), room.loaded && room.more);
    this.#drawEmpty(room);
    if (this.#atEnd) this.#toEnd();
    else if (first && rows[0] !== first) log.scrollTop += log.scrollHeight - height; // older ones came in above
    this.#drawBelow(room);
    this.#drawTyping();
    this.#markRead();
  }

  #switch(room) {
    this.#rows.clear();
    $("messages").replaceChildren();
    this.#atEnd = true;
    this.#seen = 0;
    this.#readUpTo = room && this.#store.unread(room) ? room.read_id : Infinity;
  }

  #drawHead() {
    const room = this.#store.room();
    $("room-name").textContent = room?.name ?? this.#store.opening?.display ?? "";
    $("room-topic").textContent = room ? this.#subtitle(room) : "";
    show($("show-members"), Boolean(room) && room.kind === "open");
    show($("composer"), Boolean(room));
    const label = room ? (room.other ? `Message to ${room.name}` : `Message in ${room.name}`) : "Message";
    $("text-label").textContent = label;
    $("text").placeholder = label;
    const elsewhere = this.#store.unreadElsewhere;
    show($("back-badge"), elsewhere > 0);
    $("back-badge").textContent = elsewhere > 99 ? "99+" : String(elsewhere);
    $("back").setAttribute("aria-label", elsewhere ? `Back to the rooms, ${elsewhere} unread` : "Back to the rooms");
  }

  #subtitle(room) {
    if (room.other) return this.#store.online.has(room.other.id) ? "Online" : `@${room.other.name}`;
    const people = `${room.members} ${room.members === 1 ? "person" : "people"}`;
    return room.topic ? `${people} · ${room.topic}` : people;
  }

  #drawNothing() {
    $("messages").replaceChildren();
    show($("older"), false);
    show($("new-below"), false);
    $("typing").textContent = "";
    const empty = $("empty");
    if (this.#store.opening) {
      empty.replaceChildren(h("p", {}, "Opening …"));
      return show(empty, true);
    }
    const any = this.#store.rooms.size > 0;
    const waiting = this.#store.connection.state !== "live" && !any;
    empty.replaceChildren(h("p", {}, waiting ? "Connecting …" : any ? "Choose a room, or somebody to write to." : "You are in no room yet. Join one with the plus."));
    show(empty, true);
  }

  #drawEmpty(room) {
    const empty = $("empty");
    const nothing = !room.messages.length && !this.#outgoing(room).length;
    show(empty, nothing);
    if (!nothing) return;
    if (room.loaded) empty.replaceChildren(h("p", {}, "Nothing was said here yet. Begin!"));
    else if (room.failed) {
      const again = h("button", { type: "button", class: "secondary", onclick: () => this.#actions.older() }, "Try again");
      empty.replaceChildren(h("p", {}, room.failed), again);
    } else empty.replaceChildren(h("p", {}, "Loading …"));
  }

  #outgoing(room) {
    return this.#store.outgoing.filter((one) => one.room === room.id);
  }

  #rowsOf(room) {
    const me = this.#store.me;
    const mine = this.#outgoing(room).map((one) => ({ ...one, user: me, outgoing: true }));
    const rows = [];
    const kept = new Map();
    const put = (key, version, make) => {
      const known = this.#rows.get(key);
      const row = known?.version === version ? known : { version, element: make() };
      if (known && known !== row) known.element.replaceWith(row.element);
      kept.set(key, row);
      rows.push(row.element);
    };
    let before = null;
    for (const message of [...room.messages, ...mine]) {
      const newDay = !before || dayKey(before.at) !== dayKey(message.at);
      if (newDay) put(`day ${dayKey(message.at)}`, dayName(message.at), () => divider("day", dayName(message.at)));
      const newHere = message.id > this.#readUpTo && !(before?.id > this.#readUpTo) && message.user.id !== me.id;
      if (newHere) put("new", "", () => divider("new", "New"));
      const head = newDay || newHere || before.user.id !== message.user.id || message.at - before.at > GROUP_MS;
      const version = `${message.id ?? message.state} ${head}`;
      put(`message ${message.client_id}`, version, () => this.#message(message, head));
      before = message;
    }
    this.#rows = kept;
    return rows;
  }

  #message(message, head) {
    const { user, body, at } = message;
    const own = user.id === this.#store.me.id;
    const stamp = h("time", { datetime: new Date(at).toISOString(), title: wholeTimeOf(at) }, timeOf(at));
    const words = h("div", { class: "message-words" });
    if (head) words.append(h("p", { class: "message-head" }, h("b", {}, own ? "You" : user.display), " ", stamp));
    words.append(h("p", { class: "message-body" }, ...linked(body)), ...this.#state(message));
    const attributes = { class: "message", "data-own": String(own), "data-head": String(head), "data-id": message.id ?? null, "data-state": message.state ?? "stored" };
    return h("li", attributes, head ? avatar(user) : h("span", { class: "message-time", "aria-hidden": "true" }, timeOf(at)), words);
  }

  #state(message) {
    if (!message.outgoing || message.state === "sending") return message.outgoing ? [h("p", { class: "message-state" }, icon("clock"), "Sending …")] : [];
    if (message.state === "waiting") return [h("p", { class: "message-state" }, icon("clock"), "Waiting for the connection")];
    const retry = h("button", { type: "button", onclick: () => this.#actions.retry(message.client_id) }, "Try again");
    const discard = h("button", { type: "button", onclick: () => this.#actions.discard(message.client_id) }, "Discard");
    return [h("p", { class: "message-state failed", role: "alert" }, icon("warn"), `Not sent. ${message.error ?? ""} `, retry, discard)];
  }

  #drawTyping() {
    const now = Date.now();
    const names = [...(this.#room?.typing.values() ?? [])].filter((one) => one.until > now).map((one) => one.display.split(" ")[0]);
    const dots = h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    const words = names.length > 2 ? "Several people are typing" : `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing`;
    $("typing").replaceChildren(...(names.length ? [dots, words] : []));
  }

  #drawBelow(room) {
    const unseen = this.#atEnd ? 0 : room.messages.filter((one) => one.id > this.#seen && one.user.id !== this.#store.me.id).length;
    const button = $("new-below");
    show(button, !this.#atEnd);
    button.replaceChildren(icon("down"), unseen ? `${unseen} new ${unseen === 1 ? "message" : "messages"}` : "Newest");
  }

  #scrolled() {
    const log = $("log-scroll");
    this.#atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
    if (this.#room) this.#drawBelow(this.#room);
    if (this.#atEnd) this.#markRead();
    if (log.scrollTop < NEAR_PX && this.#room?.loaded && this.#room.more) this.#actions.older();
  }

  #toEnd() {
    const log = $("log-scroll");
    log.scrollTop = log.scrollHeight;
    this.#atEnd = true;
  }

  #markRead() {
    const room = this.#room;
    if (!room || !this.#atEnd || !this.#actions.inView()) return;
    this.#seen = this.#store.tail(room);
    if (room.loaded && this.#seen > room.read_id) this.#actions.read(room, this.#seen);
  }
}

function divider(kind, text) {
  return h("li", { class: `divider ${kind}` }, h("span", {}, text));
}

// Addresses become links; everything stays text.
function linked(body) {
  return body.split(/(https?:\/\/[^\s<>"]+[^\s<>".,;:!?)\]}'])/).map((part, at) =>
    at % 2 ? h("a", { href: part, target: "_blank", rel: "noopener noreferrer" }, part) : part,
  );
}

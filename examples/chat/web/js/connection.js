// The Socket.IO connection: it comes up again by itself, and what was missed meanwhile is fetched by number.

import { io } from "./socket.io.js";

const SYNC_MS = 20_000;
const ACK_MS = 5_000;
const GAP_WAIT_MS = 300; // two instances may tell two messages in the other order
const PAGE = 200;
const GAP_MAX = 2_000; // who missed more sees the newest messages, and the others when scrolling up
const TYPING_MS = 4_000;

export class Connection {
  #session;
  #store;
  #socket = null;
  #filling = new Map(); // room id -> promise
  #onLive;

  constructor(session, store, { onLive }) {
    this.#session = session;
    this.#store = store;
    this.#onLive = onLive;
    session.addEventListener("renewed", () => this.#socket?.connected && this.ask("renew", session.token).catch(() => {}));
    setInterval(() => this.sync(), SYNC_MS);
    addEventListener("online", () => this.#socket?.connect());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.sync());
  }

  get live() {
    return this.#store.connection.state === "live";
  }

  open() {
    this.close();
    const socket = io({
      transports: ["websocket", "polling"], // polling where a proxy lets no WebSocket through; any instance serves it
      tryAllTransports: true,
      auth: (tell) => tell({ token: this.#session.token }),
      reconnectionDelay: 150,
      reconnectionDelayMax: 3_000,
    });
    this.#socket = socket;
    this.#store.setConnection({ state: "connecting" });
    socket.on("hello", (hello) => this.#hello(hello));
    socket.on("disconnect", (reason) => this.#lost(reason));
    socket.on("connect_error", (error) => this.#refused(error));
    socket.on("message", (message) => this.#message(message));
    socket.on("entered", (room) => this.#store.setRoom(room));
    socket.on("left", ({ room }) => this.#store.removeRoom(room));
    socket.on("members", ({ room, members }) => this.#members(room, members));
    socket.on("read", ({ room, id }) => this.#store.setRead(room, id));
    socket.on("online", (users) => this.#store.setOnline(users));
    socket.on("typing", ({ room, user }) => this.#typing(room, user));
  }

  close() {
    this.#socket?.removeAllListeners();
    this.#socket?.disconnect();
    this.#socket = null;
  }

  // An event that the service answers. Its problems have its `code`; no answer in time is `offline`.
  async ask(event, data) {
    if (!this.#socket?.connected) throw problem("offline", "Not connected.");
    let answer;
    try {
      answer = await this.#socket.timeout(ACK_MS).emitWithAck(event, data);
    } catch {
      throw problem("offline", "No answer came.");
    }
    if (answer.error) throw problem(answer.error.code, answer.error.message);
    return answer.ok;
  }

  // May be lost, and then nothing is.
  tell(event, data) {
    if (this.live) this.#socket.volatile.emit(event, data);
  }

  async sync() {
    if (!this.live || document.visibilityState !== "visible") return;
    const { heads, online, instances } = await this.ask("sync").catch(() => ({}));
    if (!heads) return;
    this.#store.setOnline(online, { all: true });
    this.#store.setConnection({ instances });
    for (const [id, last] of Object.entries(heads)) {
      const room = this.#store.rooms.get(Number(id));
      if (room && last > room.last_id) {
        room.last_id = last;
        this.#store.changed("rooms");
      }
      if (room) this.fill(room);
    }
  }

  // Fetch what follows the newest loaded message, if there is something.
  fill(room) {
    if (!room.loaded || this.#store.tail(room) >= room.last_id) return;
    if (!this.#filling.has(room.id)) {
      const far = room.last_id - this.#store.tail(room) > GAP_MAX;
      if (far) this.#store.forget(room);
      const work = (far ? this.load(room) : this.#fill(room)).finally(() => this.#filling.delete(room.id));
      this.#filling.set(room.id, work.catch(() => {})); // the next message, hello or sync asks again
    }
  }

  async #fill(room) {
    let more = true;
    while (more) {
      const path = `/api/rooms/${room.id}/messages?after=${this.#store.tail(room)}&limit=${PAGE}`;
      const found = await this.#session.ask("GET", path);
      this.#store.append(room, found.messages);
      more = found.more;
    }
  }

  async load(room) {
    const first = room.messages[0]?.id;
    const before = first === undefined ? "" : `&before=${first}`;
    const found = await this.#session.ask("GET", `/api/rooms/${room.id}/messages?limit=50${before}`);
    this.#store.prepend(room, found.messages, found.more);
    this.fill(room);
  }

  #hello({ me, rooms, served_by, online }) {
    const store = this.#store;
    store.me = me;
    store.setRooms(rooms);
    store.setOnline(online, { all: true });
    store.setConnection({ state: "live", servedBy: served_by });
    for (const room of store.rooms.values()) this.fill(room);
    this.#onLive();
    this.sync();
  }

  #message(message) {
    const whole = this.#store.add(message);
    const room = this.#store.rooms.get(message.room);
    if (!whole) setTimeout(() => room.ahead.size && this.fill(room), GAP_WAIT_MS);
  }

  #members(id, members) {
    const room = this.#store.rooms.get(id);
    if (room) this.#store.setRoom({ ...room, members });
  }

  #typing(id, user) {
    const room = this.#store.rooms.get(id);
    if (!room || user.id === this.#store.me.id) return;
    room.typing.set(user.id, { display: user.display, until: Date.now() + TYPING_MS });
    this.#store.changed("typing");
    setTimeout(() => this.#store.changed("typing"), TYPING_MS + 50);
  }

  #lost(reason) {
    this.#store.setConnection({ state: "connecting" });
    // The service ended it, mostly because the token had: a fresh one lets the page in again.
    if (reason === "io server disconnect") this.#session.renew().then(() => this.#session.token && this.#socket?.connect());
  }

  #refused(error) {
    this.#store.setConnection({ state: navigator.onLine ? "connecting" : "offline" });
    if (error.data?.code === "not_signed_in") this.#session.end(error.message);
    else if (!this.#socket?.active) setTimeout(() => this.#socket?.connect(), 1_000);
  }
}

function problem(code, message) {
  return Object.assign(new Error(message), { code });
}

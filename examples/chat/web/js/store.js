// What this page knows: rooms, messages, people. Nothing here draws, waits or asks.
//
// Messages of a room carry numbers without gaps. `messages` is always one unbroken piece of them; what came too early
// waits in `ahead` until the piece in between is there. So nothing is shown twice, and a hole is seen at once.

export class Store extends EventTarget {
  me = null;
  rooms = new Map(); // id -> room
  people = new Map(); // id -> { id, name, display, last_seen }
  online = new Map(); // id -> instances
  outgoing = []; // messages on their way, in the order of sending
  current = null; // id of the open room
  opening = null; // whose direct room is being opened: until it is, nothing can be written
  connection = { state: "connecting", servedBy: null, instances: [] };

  changed(...what) {
    for (const name of what) this.dispatchEvent(new Event(name));
  }

  room(id = this.current) {
    return this.rooms.get(id) ?? null;
  }

  // All rooms of the user, as they are now. What is loaded of a room stays.
  setRooms(rooms) {
    const known = this.rooms;
    this.rooms = new Map(rooms.map((room) => [room.id, this.#merged(room, known.get(room.id))]));
    if (!this.rooms.has(this.current)) this.current = null;
    this.changed("rooms", "messages");
  }

  setRoom(room) {
    this.rooms.set(room.id, this.#merged(room, this.rooms.get(room.id)));
    this.changed("rooms");
  }

  removeRoom(id) {
    this.rooms.delete(id);
    if (this.current === id) this.current = null;
    this.changed("rooms", "messages");
  }

  #merged(room, known) {
    const kept = known ?? { messages: [], ahead: new Map(), loaded: false, more: false, typing: new Map() };
    const newest = Math.max(room.last_id, known?.last_id ?? 0);
    return Object.assign(kept, room, { last_id: newest, read_id: Math.max(room.read_id, known?.read_id ?? 0) });
  }

  // The newest loaded number; 0 if nothing is loaded.
  tail(room) {
    return room.messages.at(-1)?.id ?? 0;
  }

  unread(room) {
    return Math.max(0, room.last_id - room.read_id);
  }

  get unreadElsewhere() {
    return [...this.rooms.values()].filter((room) => room.id !== this.current).reduce((sum, room) => sum + this.unread(room), 0);
  }

  // One message came. Returns false if numbers between it and what is loaded are missing.
  add(message) {
    this.settle(message.client_id);
    const room = this.rooms.get(message.room);
    if (!room) return true;
    room.typing.delete(message.user.id);
    if (message.id >= room.last_id) {
      room.last_id = message.id;
      room.last = { display: message.user.display, body: message.body, at: message.at };
    }
    if (message.user.id === this.me?.id) room.read_id = Math.max(room.read_id, message.id);
    if (room.loaded && message.id > this.tail(room)) room.ahead.set(message.id, message);
    this.#advance(room);
    this.changed("rooms", "messages");
    return !room.loaded || room.ahead.size === 0;
  }

  // Messages that follow what is loaded, in their order.
  append(room, messages) {
    for (const message of messages) {
      this.settle(message.client_id);
      if (message.id > this.tail(room)) room.ahead.set(message.id, message);
    }
    this.#advance(room);
    this.changed("rooms", "messages");
  }

  // The newest messages, or those before what is loaded.
  prepend(room, messages, more) {
    const first = room.messages[0]?.id ?? Infinity;
    for (const message of messages) this.settle(message.client_id);
    room.messages = [...messages.filter((message) => message.id < first), ...room.messages];
    room.loaded = true;
    room.more = more;
    this.#advance(room);
    this.changed("rooms", "messages");
  }

  // As if nothing of the room was ever loaded.
  forget(room) {
    room.messages = [];
    room.ahead.clear();
    room.loaded = false;
    this.changed("messages");
  }

  #advance(room) {
    let next = this.tail(room) + 1;
    while (room.ahead.has(next)) {
      room.messages.push(room.ahead.get(next));
      room.ahead.delete(next);
      next += 1;
    }
    for (const id of room.ahead.keys()) if (id < next) room.ahead.delete(id);
    room.last_id = Math.max(room.last_id, this.tail(room));
  }

  // The message is stored: it is no longer on its way.
  settle(clientId) {
    const at = this.outgoing.findIndex((one) => one.client_id === clientId);
    if (at >= 0) this.outgoing.splice(at, 1);
  }

  setRead(roomId, id) {
    const room = this.rooms.get(roomId);
    if (!room || id <= room.read_id) return;
    room.read_id = id;
    this.changed("rooms");
  }

  setOnline(users, { all = false } = {}) {
    if (all) this.online.clear();
    for (const [id, instances] of Object.entries(users)) {
      if (instances.length) this.online.set(Number(id), instances);
      else if (this.online.delete(Number(id)) && this.people.has(Number(id))) this.people.get(Number(id)).last_seen = Date.now();
    }
    this.changed("people", "rooms");
  }

  setPeople(people) {
    this.people = new Map(people.map((person) => [person.id, person]));
    this.changed("people");
  }

  setConnection(change) {
    this.connection = { ...this.connection, ...change };
    this.changed("connection");
  }
}

// The list of rooms and people: unread counts, who is online and where.

import { $, ago, arrange, avatar, eachFrame, h, icon, placesOf, shortName } from "../dom.js";

export class Sidebar {
  #store;
  #actions;

  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    const draw = eachFrame(() => this.#draw());
    for (const what of ["rooms", "people", "current", "connection"]) store.addEventListener(what, draw);
    setInterval(draw, 60_000); // "5 minutes ago" grows older
    $("add-room").addEventListener("click", () => actions.addRoom());
  }

  #draw() {
    const { rooms, people, me, online } = this.#store;
    if (!me) return;
    $("my-avatar").replaceWith(Object.assign(avatar(me), { id: "my-avatar" }));
    $("my-name").textContent = me.display;
    const { state, servedBy } = this.#store.connection;
    $("my-handle").textContent = state === "live" ? `@${me.name}, on instance ${shortName(servedBy.instance)}` : "Connecting …";
    const open = [...rooms.values()].filter((room) => room.kind === "open");
    open.sort((one, other) => one.name.localeCompare(other.name));
    this.#fill($("rooms"), open.map((room) => [`room-${room.id}`, () => this.#room(room)]));
    const directs = new Map([...rooms.values()].filter((room) => room.other).map((room) => [room.other.id, room]));
    const listed = [...people.values()].filter((person) => person.id !== me.id);
    const rank = (person) => [-(directs.get(person.id)?.last?.at ?? 0), online.has(person.id) ? 0 : 1];
    listed.sort((one, other) => rank(one)[0] - rank(other)[0] || rank(one)[1] - rank(other)[1] || one.display.localeCompare(other.display));
    this.#fill($("people"), listed.map((person) => [`person-${person.id}`, () => this.#person(person, directs.get(person.id))]));
    const unread = [...rooms.values()].reduce((sum, room) => sum + this.#store.unread(room), 0);
    document.title = unread ? `(${unread}) Quay` : "Quay";
  }

  // Rows keep their button, so that drawing anew takes the focus from nobody.
  #fill(list, rows) {
    const known = new Map([...list.children].map((row) => [row.dataset.key, row]));
    const nodes = rows.map(([key, make]) => {
      const row = known.get(key) ?? h("li", { "data-key": key }, h("button", { type: "button" }));
      const made = make();
      const button = row.firstElementChild;
      for (const name of button.getAttributeNames()) if (name !== "type") button.removeAttribute(name);
      for (const [name, value] of Object.entries(made.attributes)) if (value !== null) button.setAttribute(name, value);
      button.onclick = made.open;
      button.replaceChildren(...made.children.filter(Boolean));
      return row;
    });
    arrange(list, nodes);
  }

  #room(room) {
    const preview = room.last ? `${room.last.display.split(" ")[0]}: ${room.last.body}` : room.topic || "Nothing was said yet";
    return this.#row(room, {
      mark: h("span", { class: "room-mark", "aria-hidden": "true" }, icon("hash")),
      name: room.name,
      preview,
      label: `Room ${room.name}, ${preview}`, // has in it what is seen: that is what somebody says who speaks to the page
      open: () => this.#actions.open(room.id),
    });
  }

  #person(person, room) {
    const where = this.#store.online.get(person.id);
    const state = where ? `online, on ${placesOf(where)}` : person.last_seen ? `seen ${ago(person.last_seen)}` : "not seen yet";
    return this.#row(room ?? null, {
      mark: h("span", { class: "presence", "data-online": String(Boolean(where)) }, avatar(person)),
      name: person.display,
      preview: state[0].toUpperCase() + state.slice(1),
      label: `${person.display}, ${state}`,
      open: () => this.#actions.direct(person.id),
    });
  }

  #row(room, { mark, name, preview, label, open }) {
    const unread = room ? this.#store.unread(room) : 0;
    const current = room !== null && room.id === this.#store.current;
    return {
      attributes: {
        class: "row",
        "aria-current": current ? "true" : null,
        "aria-label": unread ? `${label}, ${unread} unread` : label,
        "data-unread": unread ? String(unread) : null,
      },
      children: [
        mark,
        h("span", { class: "row-words" }, h("b", {}, name), " ", h("span", { class: "row-preview" }, preview)),
        unread ? h("span", { class: "badge", "aria-hidden": "true" }, unread > 99 ? "99+" : String(unread)) : null,
      ],
      open,
    };
  }
}

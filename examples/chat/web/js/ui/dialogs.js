// Dialogs: join or open a room, who is in a room.

import { $, ago, avatar, h, icon, placesOf } from "../dom.js";

function open(title, ...content) {
  const dialog = $("dialog");
  const close = h("button", { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  dialog.replaceChildren(h("header", {}, h("h2", { id: "dialog-title" }, title), close), ...content);
  dialog.onclick = (event) => event.target === dialog && dialog.close(); // beside it
  if (!dialog.open) dialog.showModal();
  return dialog;
}

export async function addRoom(session, enter) {
  const error = h("p", { class: "form-error", role: "alert" });
  const list = h("ul", { class: "pick", "aria-label": "Rooms to join" });
  const name = h("input", { maxlength: "60", required: true, autocomplete: "off" });
  const topic = h("input", { maxlength: "200", autocomplete: "off" });
  const form = h("form", {}, h("h3", {}, "Open a new one"), h("label", {}, "Name", name), h("label", {}, "What it is about (optional)", topic), error, h("button", { class: "primary" }, "Open the room"));
  const dialog = open("Join a room", list, form);
  const go = async (work) => {
    error.textContent = "";
    try {
      const room = await work();
      dialog.close();
      enter(room);
    } catch (problem) {
      error.textContent = problem.message;
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (name.value.trim()) go(() => session.ask("POST", "/api/rooms", { name: name.value, topic: topic.value }));
  });
  try {
    const { others } = await session.ask("GET", "/api/rooms");
    const rows = others.map((room) => {
      const join = () => go(() => session.ask("POST", `/api/rooms/${room.id}/members`));
      const people = `${room.members} ${room.members === 1 ? "person" : "people"}`;
      const words = h("span", { class: "row-words" }, h("b", {}, room.name), h("span", { class: "row-preview" }, room.topic ? `${people} · ${room.topic}` : people));
      return h("li", {}, h("button", { type: "button", class: "row", onclick: join }, h("span", { class: "room-mark", "aria-hidden": "true" }, icon("hash")), words));
    });
    list.replaceChildren(...(rows.length ? rows : [h("li", { class: "none" }, "You are in every open room.")]));
  } catch (problem) {
    error.textContent = problem.message;
  }
}

export async function members(session, store, room, leave) {
  const list = h("ul", { class: "pick", "aria-label": "Members" });
  const error = h("p", { class: "form-error", role: "alert" });
  const away = h("button", { type: "button", class: "secondary danger" }, "Leave this room");
  const dialog = open(room.name, list, error, away);
  away.addEventListener("click", async () => {
    try {
      await leave(room);
      dialog.close();
    } catch (problem) {
      error.textContent = problem.message;
    }
  });
  try {
    const found = await session.ask("GET", `/api/rooms/${room.id}/members`);
    list.replaceChildren(...found.members.map((person) => memberRow(store, person)));
  } catch (problem) {
    error.textContent = problem.message;
  }
}

function memberRow(store, person) {
  const where = store.online.get(person.id);
  const state = where ? `Online, on ${placesOf(where)}` : person.last_seen ? `Seen ${ago(person.last_seen)}` : "Not seen yet";
  const mark = h("span", { class: "presence", "data-online": String(Boolean(where)) }, avatar(person));
  return h("li", { class: "row" }, mark, h("span", { class: "row-words" }, h("b", {}, person.display), h("span", { class: "row-preview" }, state)));
}

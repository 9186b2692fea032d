// Puts the page together: who is signed in, what is known, the connection, what is drawn.

import { Connection } from "./connection.js";
import { $, icon, notice, show } from "./dom.js";
import { Outbox } from "./outbox.js";
import { enterRoom, forgetRoom, leaveRoom, roomInAddress } from "./place.js";
import { Session } from "./session.js";
import { Store } from "./store.js";
import { Composer } from "./ui/composer.js";
import { Conversation } from "./ui/conversation.js";
import { addRoom, members } from "./ui/dialogs.js";
import { Fleet } from "./ui/fleet.js";
import { Sidebar } from "./ui/sidebar.js";
import { Welcome } from "./ui/welcome.js";

const WIDE = matchMedia("(min-width: 760px)");
const PEOPLE_WAIT_MS = 1_000;

const session = new Session();
const store = new Store();
let connection = null;
let outbox = null;
let peoplePlanned = 0;

const actions = {
  open(id) {
    const room = store.rooms.get(id);
    if (!room) return;
    store.current = id;
    store.opening = null;
    $("app").dataset.pane = "talk";
    enterRoom(id, !WIDE.matches);
    store.changed("current", "rooms");
    if (!room.loaded) actions.older();
    const first = $(WIDE.matches ? "text" : "room-name");
    requestAnimationFrame(() => first.focus()); // after what has changed is drawn: what is hidden takes no focus
  },

  // The first messages of the open room, or the ones before what is there.
  async older() {
    const room = store.room();
    if (!room || room.loading) return;
    room.loading = true;
    room.failed = null;
    try {
      await connection.load(room);
    } catch (error) {
      room.failed = error.message;
      if (room.loaded) notice(error.message);
    } finally {
      room.loading = false;
      store.changed("messages");
    }
  },

  async direct(user) {
    const known = [...store.rooms.values()].find((room) => room.other?.id === user);
    if (known) return actions.open(known.id);
    const person = store.people.get(user);
    store.current = null;
    store.opening = person;
    $("app").dataset.pane = "talk";
    store.changed("current", "rooms");
    try {
      const room = await session.ask("POST", "/api/direct", { user });
      store.setRoom(room);
      if (store.opening === person) actions.open(room.id);
    } catch (error) {
      notice(error.message);
      if (store.opening !== person) return;
      store.opening = null;
      $("app").dataset.pane = "rooms";
      store.changed("current");
    }
  },

  addRoom() {
    addRoom(session, (room) => {
      store.setRoom(room);
      actions.open(room.id);
    });
  },

  async leave(room) {
    await session.ask("DELETE", `/api/rooms/${room.id}/members/me`);
    store.removeRoom(room.id);
    leaveRoom(showRooms);
    store.changed("current");
  },

  read(room, id) {
    room.read_id = id;
    store.changed("rooms");
    connection.ask("read", { room: room.id, id }).catch(() => {}); // the next message says it again
  },

  inView: () => document.visibilityState === "visible" && (WIDE.matches || $("app").dataset.pane === "talk"),
  send: (room, body) => outbox.send(room, body),
  retry: (clientId) => outbox.retry(clientId),
  discard: (clientId) => outbox.discard(clientId),
  typing: (room) => connection.tell("typing", { room }),
};

function showRooms() {
  if ($("app").dataset.pane === "rooms") return;
  $("app").dataset.pane = "rooms";
  if (WIDE.matches) return;
  requestAnimationFrame(() => (document.querySelector(".row[aria-current]") ?? $("rooms-title")).focus()); // a room may be gone
}

async function loadPeople() {
  clearTimeout(peoplePlanned);
  peoplePlanned = 0;
  try {
    store.setPeople((await session.ask("GET", "/api/users")).users);
  } catch {
    peoplePlanned = setTimeout(loadPeople, 5_000);
  }
}

// Somebody is online who was not there when the people were listed.
function noticeStrangers() {
  const known = store.people;
  if (known.size && !peoplePlanned && [...store.online.keys()].some((id) => !known.has(id))) {
    peoplePlanned = setTimeout(loadPeople, PEOPLE_WAIT_MS);
  }
}

function begin() {
  show($("welcome"), false);
  show($("app"), true);
  outbox = new Outbox(store, (event, data) => connection.ask(event, data));
  store.me = session.user;
  outbox.restore();
  connection.open();
  loadPeople();
}

function live() {
  outbox.pump();
  const room = store.room();
  if (room && !room.loaded) actions.older();
  if (room) return;
  const kept = roomInAddress();
  if (store.rooms.has(kept)) actions.open(kept);
  else if (WIDE.matches) actions.open([...store.rooms.values()].find((one) => one.kind === "open")?.id);
}

function theme() {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const draw = () => {
    $("theme").replaceChildren(icon(dark() ? "sun" : "moon"));
    $("theme").setAttribute("aria-label", dark() ? "Use the light theme" : "Use the dark theme");
  };
  const kept = localStorage.getItem("quay-theme");
  if (kept) document.documentElement.dataset.theme = kept;
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem("quay-theme", document.documentElement.dataset.theme);
    draw();
  });
  draw();
}

connection = new Connection(session, store, { onLive: live });
new Sidebar(store, actions);
new Conversation(store, actions);
new Composer(store, actions);
new Fleet(store, () => connection.sync());
const welcome = new Welcome(session, () => {
  begin();
  $("rooms-title").focus(); // the button that had the focus is gone
});
theme();
store.addEventListener("people", noticeStrangers);
$("show-members").addEventListener("click", () => members(session, store, store.room(), actions.leave));
$("sign-out").addEventListener("click", () => session.end());
$("back").addEventListener("click", () => leaveRoom(showRooms));
$("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the room's
  $("text").focus();
});
addEventListener("popstate", () => {
  const id = roomInAddress();
  if (store.rooms.has(id)) actions.open(id);
  else showRooms();
});
session.addEventListener("ended", ({ detail }) => {
  connection.close();
  forgetRoom();
  if (detail.asked) sessionStorage.removeItem("quay-outbox"); // else it waits for the same user to come back
  location.reload(); // nothing of one person stays for the next
});
if (session.token) begin();
else welcome.open(Session.lastWords());

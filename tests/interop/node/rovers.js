// Official clients against one address whose instances are killed, stopped, and lose their Redis; some of them come anew
// all the time, so that upgrades and moves are always under way. Within one connection everything is checked: broadcasts
// and own events once and in order, acknowledgements in both directions, binary values.
//   node rovers.js <url> <upgrading> <polling> <websocket> <of the upgrading: how many come anew all the time>
// Writes {"ready":n} when all have been in, then answers each line on stdin: "report", "quiet" (nobody asks or leaves any
// more), "leave" (all disconnect); ends with it.
"use strict";
const readline = require("node:readline");
const { io } = require("socket.io-client");

const [url, ...counts] = process.argv.slice(2);
const [upgrading, polling, websocket, roving] = counts.map(Number);
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const STUCK_MS = 20000;
const clients = [];
const faults = [], errors = [], gaps = [];
const totals = { connects: 0, asked: 0, answered: 0, wasAsked: 0, heard: 0, upgrades: 0, recovered: 0, late: 0 };
let quiet = false, ready = 0;

const fault = (client, what, detail) => {
  if (faults.length < 100) faults.push({ at: Date.now(), name: client.name, id: client.here.id, engine: client.here.engine, what, detail });
};

function begin(client) {
  const engine = client.socket.io.engine;
  const last = client.socket.recovered ? client.last : {};
  if (client.socket.recovered) totals.recovered += 1;
  client.last = last;
  client.here = { id: client.socket.id, engine: engine.id, token: `${client.name}/${++totals.connects}`, last, said: 0, told: -1, acked: -1, waiting: new Map(), joined: false };
  const here = client.here;
  engine.on("upgrade", () => { totals.upgrades += 1; });
  if (!client.wasIn) { client.wasIn = true; ready += 1; if (ready === clients.length) say({ ready }); }
  wait(here, "join", () => client.socket.emit("join", "crowd", () => { here.waiting.delete("join"); here.joined = true; }));
}

function wait(here, what, send) {
  here.waiting.set(what, Date.now());
  send();
}

function ask(client) {
  const here = client.here, number = here.said++;
  totals.asked += 1;
  wait(here, number, () => client.socket.emit("say", number, Buffer.alloc(1 + (number % 300), number & 255), here.token, (back, bytes) => {
    totals.answered += 1;
    if (client.here !== here) return fault(client, "late answer", [here.id, number]);
    here.waiting.delete(number);
    if (back !== number || !Buffer.isBuffer(bytes) || bytes[0] !== (number & 255)) fault(client, "answer", [number, back]);
    if (number !== here.acked + 1) fault(client, "answers out of order", [here.acked, number]);
    if (here.told < number) fault(client, "answer before event", [here.told, number]);
    here.acked = number;
  }));
}

function start(name, transports, roves) {
  const socket = io(url, { transports, forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 600, autoConnect: false });
  const client = { name, socket, here: { waiting: new Map() }, roves, wasIn: false };
  clients.push(client);
  socket.on("connect", () => begin(client));
  const failed = (what) => (error) => {
    if (errors.length < 2000) errors.push({ at: Date.now(), name, engine: socket.io.engine?.id, what, text: `${error.message} ${error.description ?? ""} ${error.context?.responseText ?? ""}`.slice(0, 200) });
  };
  socket.io.on("open", () => {
    const engine = socket.io.engine;
    engine.on("error", (error) => { if (engine === socket.io.engine) failed("engine")(error); }); // not of one that it left
  });
  socket.on("connect_error", failed("connect_error"));
  socket.on("disconnect", (reason) => {
    if (reason !== "io client disconnect") errors.push({ at: Date.now(), name, engine: client.here.engine, what: "disconnect", text: reason });
    client.here = { id: client.here.id, engine: client.here.engine, waiting: new Map() };
  });
  socket.on("n", (instance, number, bytes) => {
    totals.heard += 1;
    const last = client.here.last?.[instance];
    if (client.here.last === undefined) { totals.late += 1; return; } // the client hands on later what came with the close
    if (last !== undefined && number <= last) fault(client, "doubled or reordered", [instance, last, number]);
    if (last !== undefined && number > last + 1) gaps.push({ at: Date.now(), name, engine: client.here.engine, detail: [instance, last, number] });
    if (!Buffer.isBuffer(bytes) || bytes.readUInt32BE(0) !== number) fault(client, "binary", [instance, number]);
    client.here.last[instance] = number;
  });
  socket.on("told", (number, token) => {
    if (token !== client.here.token) return; // replayed: it was for the connection before
    if (number !== client.here.told + 1) fault(client, "told", [client.here.told, number]);
    client.here.told = number;
  });
  socket.on("ask", (number, bytes, answer) => { totals.wasAsked += 1; answer(number, bytes); });
  socket.connect();
  if (roves) setTimeout(() => rove(client), 500 + Math.random() * 3000);
}

function rove(client) {
  if (quiet) return;
  if (client.socket.connected) { client.socket.disconnect(); client.socket.connect(); }
  setTimeout(() => rove(client), 500 + Math.random() * 3000);
}

const asking = setInterval(() => {
  for (const client of clients) if (client.here.joined && Math.random() < 0.05) ask(client);
}, 20);

const watching = setInterval(() => {
  const now = Date.now();
  for (const client of clients) for (const [what, since] of client.here.waiting) if (now - since > STUCK_MS) {
    client.here.waiting.delete(what);
    fault(client, "stuck", [what, client.socket.io.engine.transport?.name]);
  }
}, 500);

function report() {
  say({
    faults, errors, gaps, ...totals,
    connected: clients.filter((client) => client.socket.connected).length,
    waiting: clients.reduce((sum, client) => sum + client.here.waiting.size, 0),
    lost: clients.filter((client) => !client.socket.connected || client.here.waiting.size).map((client) => [client.name, client.socket.connected, [...client.here.waiting.keys()].slice(0, 3), client.socket.io.engine?.transport?.name, client.socket.io.engine?.id, client.socket.io._readyState, client.socket.io.engine?.readyState]).slice(0, 20),
    upgraded: clients.filter((client) => client.socket.io.engine?.transport?.name === "websocket").length,
  });
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  if (line === "quiet") { quiet = true; clearInterval(asking); }
  if (line === "leave") { clearInterval(watching); for (const client of clients) client.socket.disconnect(); }
  report();
}).on("close", () => process.exit(0));

for (let n = 0; n < upgrading; n++) start(`u${n}`, ["polling", "websocket"], n < roving);
for (let n = 0; n < polling; n++) start(`p${n}`, ["polling"], n < polling / 4);
for (let n = 0; n < websocket; n++) start(`w${n}`, ["websocket"], false);

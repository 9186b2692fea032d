// A crowd of official clients against one address, checked while it runs: every client joins a room, gets numbered
// broadcasts from every instance, asks and is asked with acknowledgements and binary values.
//   node crowd.js <url> <clients> <transports, comma-separated> <connecting at once>
// Writes {"ready":n} when all are in (and upgraded, if they should), then a report for each line on stdin; ends with it.
"use strict";
const readline = require("node:readline");
const { io } = require("socket.io-client");

const [url, count, transports, atOnce] = [process.argv[2], Number(process.argv[3]), process.argv[4].split(","), Number(process.argv[5])];
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const clients = [];
const faults = [];
let upgrades = 0, asked = 0, answered = 0, wasAsked = 0, got = 0;

const fault = (name, what, detail) => { if (faults.length < 50) faults.push([name, what, detail]); };

function start(name) {
  return new Promise((resolve) => {
    const socket = io(url, { transports, forceNew: true, reconnectionDelay: 100, reconnectionDelayMax: 500 });
    const client = { name, socket, last: {}, connects: 0, upgraded: transports.length === 1 };
    clients.push(client);
    const done = () => { if (client.joined && client.upgraded) resolve(); };
    socket.io.on("open", () => {
      socket.io.engine.on("upgrade", () => { upgrades += 1; client.upgraded = true; done(); });
      socket.io.engine.on("upgradeError", (error) => fault(name, "upgradeError", error.message));
    });
    socket.io.on("error", (error) => fault(name, "error", `${error.message} ${error.description ?? ""} ${error.context?.responseText ?? ""}`));
    socket.on("connect", () => {
      client.connects += 1;
      client.last = {};
      socket.emit("join", "crowd", () => { client.joined = true; done(); });
    });
    socket.on("connect_error", (error) => fault(name, "connect_error", error.message));
    socket.on("disconnect", (reason) => fault(name, "disconnect", reason));
    socket.on("n", (instance, number, bytes) => {
      got += 1;
      const last = client.last[instance];
      if (last !== undefined && number !== last + 1) fault(name, "order", [instance, last, number]);
      if (!Buffer.isBuffer(bytes) || bytes.readUInt32BE(0) !== number) fault(name, "binary", [instance, number]);
      client.last[instance] = number;
    });
    socket.on("ask", (number, answer) => { wasAsked += 1; answer(number, Buffer.from([number & 255])); });
  });
}

function ask(client) {
  const number = asked++;
  client.socket.emit("echo", number, Buffer.from([number & 255]), (back, bytes) => {
    answered += 1;
    if (back !== number || bytes[0] !== (number & 255)) fault(client.name, "echo", [number, back]);
  });
}

async function main() {
  let next = 0;
  const worker = async () => { while (next < count) await start(`c${next++}`); };
  await Promise.all(Array.from({ length: atOnce }, worker));
  say({ ready: clients.length, upgrades });
}

const asking = setInterval(() => { const client = clients[Math.floor(Math.random() * clients.length)]; if (client?.joined) ask(client); }, 10);

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  if (line === "quiet") clearInterval(asking);
  const last = {};
  for (const client of clients) for (const [instance, number] of Object.entries(client.last)) {
    last[instance] ??= [number, number];
    last[instance] = [Math.min(last[instance][0], number), Math.max(last[instance][1], number)];
  }
  const heard = Math.min(...clients.map((client) => Object.keys(client.last).length));
  const connects = Math.max(...clients.map((client) => client.connects));
  const connected = clients.filter((client) => client.socket.connected).length;
  const websockets = clients.filter((client) => client.socket.io.engine?.transport?.name === "websocket").length;
  say({ faults, upgrades, asked, answered, wasAsked, got, last, heard, connects, connected, websockets });
}).on("close", () => process.exit(0));

main();

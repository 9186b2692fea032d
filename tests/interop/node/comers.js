// Official clients with default options against one address whose instances come and go: whatever happens to a connection,
// the client is back by itself.
//   node comers.js <url> <clients> <milliseconds between two that connect>
// Writes {"half":n} when half of them are in and {"ready":n} when all are, then a report for each line on stdin; ends with it.
"use strict";
const readline = require("node:readline");
const { io } = require("socket.io-client");

const [url, count, pause] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const clients = [];
let ready = 0;

function start(name) {
  const socket = io(url, { forceNew: true });
  const client = { name, socket, connects: 0, disconnects: [], errors: [] };
  clients.push(client);
  socket.on("connect", () => {
    client.connects += 1;
    if (client.connects > 1) return;
    ready += 1;
    if (ready === Math.ceil(count / 2)) say({ half: ready });
    if (ready === count) say({ ready });
  });
  socket.on("disconnect", (reason) => client.disconnects.push(reason));
  socket.on("connect_error", (error) => {
    client.errors.push(`${error.message} ${error.description ?? ""} ${error.context?.responseText ?? ""}`);
  });
}

function main() {
  if (clients.length < count) { start(`c${clients.length}`); setTimeout(main, pause); }
}

async function report() {
  const answers = await Promise.all(clients.map((client) =>
    client.socket.timeout(2000).emitWithAck("join", "crowd").then(() => true, () => false)));
  say({
    answered: answers.filter(Boolean).length,
    connected: clients.filter((client) => client.socket.connected).length,
    disconnects: clients.flatMap((client) => client.disconnects),
    errors: clients.flatMap((client) => client.errors),
    most: Math.max(...clients.map((client) => client.connects)),
  });
}

readline.createInterface({ input: process.stdin }).on("line", report).on("close", () => process.exit(0));
main();

// The application of tests/interop/differential_app.py on the official server: prints its port, ends with its input.
// /control answers, when everything that came before has been done, with what the handlers have seen since the last time;
// /control?release lets in who waits at the gate.
"use strict";
const http = require("node:http");
const { Server } = require("socket.io");

const options = JSON.parse(process.argv[2]);
const TURNS = 10;
let seen = [];
let gate = [];

function plain(value) {
  if (Buffer.isBuffer(value)) return { $bytes: value.toString("base64") };
  if (Array.isArray(value)) return value.map(plain);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]));
  return value === undefined ? null : value;
}

async function control(request, response) {
  if (request.url.includes("release")) {
    for (const open of gate) open();
    gate = [];
  }
  for (let turn = 0; turn < TURNS; turn++) await new Promise(setImmediate);
  const body = JSON.stringify(seen);
  seen = [];
  response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
  response.end(body);
}

const web = http.createServer((request, response) => {
  if (request.url.startsWith("/control")) {
    control(request, response);
  } else {
    response.writeHead(404);
    response.end();
  }
});
const io = new Server(web, options);

function spread(from, { to = [], except = [], args = [] }) {
  let target = from;
  for (const room of to) target = target.to(room);
  for (const room of except) target = target.except(room);
  target.emit("said", ...args);
}

const handlers = {
  echo: (socket, args, ack) => ack(...args),
  back: (socket, args) => socket.emit("back", ...args),
  join: (socket, [room], ack) => { socket.join(room); ack(); },
  leave: (socket, [room], ack) => { socket.leave(room); ack(); },
  say: (socket, [what], ack) => { spread(socket.broadcast, what); ack(); },
  tell: (socket, [what], ack) => { spread(socket.nsp, what); ack(); },
  ask: (socket, args) => socket.emit("question", ...args, (...answer) => socket.emit("answered", ...answer)),
  maybe: (socket, args) => socket.volatile.emit("maybe", ...args),
  kick: (socket) => socket.disconnect(),
  hangup: (socket) => socket.disconnect(true),
};

function attend(socket) {
  const who = socket.handshake.query.who;
  const see = (kind, ...what) => seen.push([who, socket.nsp.name, kind, plain(what)]);
  see("connect");
  socket.onAny((event) => {
    if (!Object.hasOwn(handlers, event)) see("event", typeof event === "number" ? String(event) : event);
  });
  for (const [event, handle] of Object.entries(handlers)) {
    socket.on(event, (...args) => {
      const ack = typeof args[args.length - 1] === "function" ? args.pop() : () => {};
      see("event", event, ...args);
      handle(socket, args, ack);
    });
  }
  socket.on("disconnect", (reason) => see("disconnect", reason));
}

for (const name of ["/", "/second", "/guarded", "/gated", /^\/dyn-[a-z0-9]+$/]) io.of(name).on("connection", attend);
io.of("/guarded").use((socket, next) => {
  if (socket.handshake.auth.token === "yes") return next();
  next(Object.assign(new Error("not you"), { data: { why: "token" } }));
});
io.of("/gated").use((socket, next) => gate.push(next));

web.listen(0, "127.0.0.1", () => console.log(web.address().port));
process.stdin.on("end", () => process.exit(0)).resume();

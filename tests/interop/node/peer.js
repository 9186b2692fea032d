// The official JavaScript peers behind a line protocol: one JSON object per line on stdin, answers on stdout.
//   {"id":1,"op":"connect","name":"a","url":"http://...","options":{}}  ->  {"id":1,"ok":...} or {"id":1,"error":"..."}
// What happens by itself: {"event":"client","name":"a","what":"connect"|"disconnect"|"event"|...,"args":[...]}
// Binary values travel as {"$bytes":"<base64>"} in both directions.
"use strict";
const readline = require("node:readline");
const http = require("node:http");
const { io } = require("socket.io-client");
const { Server } = require("socket.io");
const { createAdapter, createShardedAdapter } = require("@socket.io/redis-adapter");
const streams = require("@socket.io/redis-streams-adapter");
const { Emitter } = require("@socket.io/redis-emitter");
const { createClient } = require("redis");

const clients = new Map();
let server = null;
const redisClients = [];

const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");

function pack(value) {
  if (Buffer.isBuffer(value)) return { $bytes: value.toString("base64") };
  if (value instanceof Uint8Array || value instanceof ArrayBuffer) return pack(Buffer.from(value));
  if (Array.isArray(value)) return value.map(pack);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, pack(v)]));
  return value === undefined ? null : value;
}

function unpack(value) {
  if (Array.isArray(value)) return value.map(unpack);
  if (value && typeof value === "object") {
    if (typeof value.$bytes === "string") return Buffer.from(value.$bytes, "base64");
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v)]));
  }
  return value;
}

function watch(name, socket) {
  const tell = (what, args) => say({ event: "client", name, what, args: pack(args) });
  socket.on("connect", () => tell("connect", [socket.id, socket.io.engine.transport.name]));
  socket.on("connect_error", (error) => tell("connect_error", [error.message, error.data ?? null]));
  socket.on("disconnect", (reason) => tell("disconnect", [reason]));
  socket.io.on("open", () => socket.io.engine.on("upgrade", (transport) => tell("upgrade", [transport.name])));
  socket.io.on("reconnect_attempt", (n) => tell("reconnect_attempt", [n]));
  socket.onAny((event, ...args) => {
    const ack = typeof args[args.length - 1] === "function" ? args.pop() : null;
    tell("event", [event, ...args]);
    if (ack && event !== "never-answered") ack(...args);
  });
}

async function redisClient(url) {
  const client = createClient({ url });
  client.on("error", () => {});
  await client.connect();
  redisClients.push(client);
  return client;
}

// How a server of each adapter is made; the options are the adapter's own.
const adapters = {
  classic: async (redis, options) => createAdapter(await redisClient(redis), await redisClient(redis), options),
  sharded: async (redis, options) => createShardedAdapter(await redisClient(redis), await redisClient(redis), options),
  streams: async (redis, options) => streams.createAdapter(await redisClient(redis), options),
};

const operations = {
  connect({ name, url, options }) {
    const socket = io(url, { transports: ["websocket"], reconnectionDelay: 50, reconnectionDelayMax: 200, forceNew: true, ...options });
    clients.set(name, socket);
    watch(name, socket);
  },
  emit({ name, args }) {
    clients.get(name).emit(...unpack(args));
  },
  async ask({ name, args, timeout }) {
    return await new Promise((resolve, reject) => {
      clients.get(name).timeout(timeout ?? 5000).emit(...unpack(args), (error, ...answer) => (error ? reject(error) : resolve(pack(answer))));
    });
  },
  close({ name }) {
    clients.get(name).close();
    clients.delete(name);
  },
  async serve({ redis, adapter, options, server: serverOptions }) {
    const web = http.createServer();
    server = new Server(web, serverOptions);
    server.adapter(await adapters[adapter ?? "classic"](redis, options));
    server.on("connection", (socket) => {
      socket.on("join", (room, done) => { socket.join(room); done(); });
    });
    await new Promise((resolve) => web.listen(0, "127.0.0.1", resolve));
    return web.address().port;
  },
  broadcast({ rooms, except, args }) {
    let target = server;
    for (const room of rooms ?? []) target = target.to(room);
    for (const room of except ?? []) target = target.except(room);
    target.emit(...unpack(args));
  },
  async fetchSockets({ room }) {
    const sockets = await (room ? server.in(room) : server).fetchSockets();
    return sockets.map((socket) => ({ id: socket.id, rooms: [...socket.rooms] }));
  },
  async allRooms() {
    return [...(await server.of("/").adapter.allRooms())];
  },
  join({ target, room }) {
    server.in(target).socketsJoin(room);
  },
  leave({ target, room }) {
    server.in(target).socketsLeave(room);
  },
  kick({ target, close }) {
    server.in(target).disconnectSockets(Boolean(close));
  },
  async broadcastWithAck({ args, timeout }) {
    return await new Promise((resolve) => {
      server.timeout(timeout ?? 2000).emit(...unpack(args), (error, answers) => resolve({ error: error ? error.message : null, answers: pack(answers) }));
    });
  },
  async emitter({ redis, room, args }) {
    const emitter = new Emitter(await redisClient(redis));
    (room ? emitter.to(room) : emitter).emit(...unpack(args));
  },
};

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const command = JSON.parse(line);
  try {
    say({ id: command.id, ok: (await operations[command.op](command)) ?? null });
  } catch (error) {
    say({ id: command.id, error: String(error.message ?? error) });
  }
}).on("close", () => process.exit(0));

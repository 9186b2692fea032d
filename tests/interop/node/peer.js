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
const { Socket: EngineSocket } = require("engine.io-client");
const { createClient } = require("redis");

// The official adapters do not look at the promise of a publish: while Redis is away it would end the process.
process.on("unhandledRejection", () => {});

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
    if (typeof value.$date === "number") return new Date(value.$date);
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v)]));
  }
  return value;
}

function watch(name, socket) {
  const tell = (what, args) => say({ event: "client", name, what, args: pack(args) });
  socket.on("connect", () => tell("connect", [socket.id, socket.io.engine.transport.name, Boolean(socket.recovered)]));
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

function targeted(from, rooms, except) {
  let target = from;
  for (const room of rooms ?? []) target = target.to(room);
  for (const room of except ?? []) target = target.except(room);
  return target;
}

const operations = {
  connect({ name, url, options }) {
    if (options.parser === "msgpack") options.parser = require("socket.io-msgpack-parser");
    const socket = io(url, { transports: ["websocket"], reconnectionDelay: 50, reconnectionDelayMax: 200, forceNew: true, ...options });
    clients.set(name, socket);
    watch(name, socket);
  },
  // A client of Engine.IO alone: its messages are told as they come.
  engine({ name, url, options }) {
    const socket = new EngineSocket(url, options);
    clients.set(name, socket);
    const tell = (what, args) => say({ event: "client", name, what, args: pack(args) });
    socket.on("open", () => tell("open", [socket.id, socket.transport.name]));
    socket.on("upgrade", (transport) => tell("upgrade", [transport.name]));
    socket.on("message", (data) => tell("message", [data]));
    socket.on("close", (reason) => tell("close", [reason]));
  },
  engineSend({ name, data }) {
    clients.get(name).send(unpack(data));
  },
  emit({ name, args }) {
    clients.get(name).emit(...unpack(args));
  },
  async ask({ name, args, timeout }) {
    return await new Promise((resolve, reject) => {
      clients.get(name).timeout(timeout ?? 5000).emit(...unpack(args), (error, ...answer) => (error ? reject(error) : resolve(pack(answer))));
    });
  },
  // The connection breaks without a word, as by a dead network: the client comes back by itself.
  cut({ name }) {
    clients.get(name).io.engine.transport.ws._socket.resetAndDestroy();
  },
  // What the client says of itself when it comes back.
  recovery({ name }) {
    const socket = clients.get(name);
    return { pid: socket._pid ?? null, offset: socket._lastOffset ?? null };
  },
  disconnect({ name }) {
    clients.get(name).disconnect();
  },
  reconnect({ name }) {
    clients.get(name).connect();
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
      Object.assign(socket.data, unpack(socket.handshake.auth.data ?? {}));
      socket.on("join", (room, done) => { socket.join(room); done(); });
    });
    // What other servers say to this one.
    server.on("told", (...args) => say({ event: "client", name: "server", what: "told", args: pack(args) }));
    server.on("sum", (a, b, answer) => answer(a + b));
    server.on("echo", (value, answer) => answer(value));
    server.on("silent", () => {});
    await new Promise((resolve) => web.listen(0, "127.0.0.1", resolve));
    return web.address().port;
  },
  broadcast({ rooms, except, volatile, local, args }) {
    let target = targeted(server, rooms, except);
    if (volatile) target = target.volatile;
    if (local) target = target.local;
    target.emit(...unpack(args));
  },
  async fetchSockets({ room }) {
    const sockets = await (room ? server.in(room) : server).fetchSockets();
    return sockets.map((socket) => ({ id: socket.id, rooms: [...socket.rooms], data: pack(socket.data), address: socket.handshake.address }));
  },
  async serverCount() {
    return await server.of("/").adapter.serverCount();
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
  async broadcastWithAck({ rooms, except, args, timeout }) {
    return await new Promise((resolve) => {
      targeted(server, rooms, except).timeout(timeout ?? 2000).emit(...unpack(args), (error, answers) => resolve({ error: error ? error.message : null, answers: pack(answers) }));
    });
  },
  // One socket that another server may hold, found by its id.
  async remote({ sid, act, args, timeout }) {
    const [socket] = await server.in(sid).fetchSockets();
    if (act === "ask") return pack(await socket.timeout(timeout ?? 2000).emitWithAck(...unpack(args)));
    socket[act](...unpack(args ?? []));
  },
  serverSideEmit({ args }) {
    server.serverSideEmit(...unpack(args));
  },
  async serverSideAsk({ args }) {
    return await new Promise((resolve) => {
      server.serverSideEmit(...unpack(args), (error, answers) => resolve({ error: error ? error.message : null, answers: pack(answers) }));
    });
  },
  // act: emit, socketsJoin, socketsLeave, disconnectSockets or serverSideEmit, with args.
  async emitter({ redis, key, room, except, volatile, act, args }) {
    const emitter = new Emitter(await redisClient(redis), key ? { key } : undefined);
    let target = room || except || volatile ? targeted(emitter, room ? [room] : [], except) : emitter;
    if (volatile) target = target.volatile;
    target[act ?? "emit"](...unpack(args));
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

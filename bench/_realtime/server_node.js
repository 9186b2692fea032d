// The same with Node's socket.io (ws), installed by the interop tests' lock file.
"use strict";
const path = require("node:path");
const peers = path.join(__dirname, "../../tests/interop/node/node_modules");
const { Server } = require(path.join(peers, "socket.io"));
const http = require("node:http");
const web = http.createServer();
const io = new Server(web, { perMessageDeflate: false });
io.on("connection", (socket) => {
  socket.on("enter", (room, done) => {
    socket.join(room);
    done();
  });
  socket.on("goroom", (event, room) => io.to(room).emit("tick", event));
  socket.on("echo", (event, done) => done(event));
  socket.on("go", async (event, times) => {
    for (let i = 0; i < times; i++) {
      io.emit("tick", event);
      await new Promise(setImmediate);
    }
  });
});
async function start() {
  if (process.env.REDIS_URL) {
    const { createAdapter } = require(path.join(peers, "@socket.io/redis-adapter"));
    const { createClient } = require(path.join(peers, "redis"));
    const publisher = createClient({ url: process.env.REDIS_URL });
    const subscriber = publisher.duplicate();
    await Promise.all([publisher.connect(), subscriber.connect()]);
    io.adapter(createAdapter(publisher, subscriber));
  }
  web.listen(Number(process.env.PORT), "127.0.0.1", 4096);
}
start();

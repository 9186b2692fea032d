// The same with Node's socket.io (ws), installed by the interop tests' lock file.
"use strict";
const path = require("node:path");
const { Server } = require(path.join(__dirname, "../../tests/interop/node/node_modules/socket.io"));
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
web.listen(Number(process.env.PORT), "127.0.0.1", 4096);

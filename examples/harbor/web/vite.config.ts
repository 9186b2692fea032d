// Builds the page into the folder that the Python service serves. The names of the assets carry their hash, so that the
// service may let browsers keep them for ever; nothing is inlined, because the Content-Security-Policy allows no data: script.
import { defineConfig } from "vite";

const SERVICE = "http://127.0.0.1:8000";

export default defineConfig({
  base: "/",
  build: {
    outDir: "../src/harbor/static/app",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    target: "es2022",
    modulePreload: { polyfill: false },
  },
  server: {
    fs: { allow: [".."] },
    proxy: {
      "/api": SERVICE,
      "/socket.io": { target: SERVICE, ws: true },
    },
  },
});

// The live connection: Socket.IO. It reconnects by itself, to whichever instance answers. If the service still knew this
// page, everything that it missed has arrived before `hello`; else the page loads the whole picture once. Then only
// changes arrive.
//
// WebSocket first: after a lost instance that is one request until events flow again, where polling and the upgrade are
// five. Polling is there for networks that let no WebSocket through.

import { io, type Socket } from "socket.io-client";
import type { Alert, ClientEvents, DeviceInfo, Hello, PositionTuple, ServerEvents, StatusAnswer } from "./contract";

const STATUS_MS = 2_000;
const STATUS_TIMEOUT_MS = 1_800;

export type LiveState = "offline" | "connecting" | "live" | "reconnecting";

export interface LiveEvents {
  state(state: LiveState): void;
  /** A connection stands. complete: nothing has been missed since the last one. */
  hello(hello: Hello, complete: boolean): void;
  positions(batch: PositionTuple[]): void;
  devices(devices: DeviceInfo[]): void;
  sharing(): void;
  areas(): void;
  alert(alert: Alert): void;
  status(status: StatusAnswer): void;
  /** The service does not accept the token. */
  refused(): void;
}

export class Live {
  state: LiveState = "offline";
  private socket: Socket<ServerEvents, ClientEvents> | null = null;
  private timer: ReturnType<typeof setInterval> | undefined;

  constructor(private readonly events: LiveEvents) {}

  open(token: () => string | null): void {
    this.close();
    this.enter("connecting");
    const socket: Socket<ServerEvents, ClientEvents> = io({
      transports: ["websocket", "polling"],
      tryAllTransports: true,
      auth: (answer) => answer({ token: token() }),
      reconnectionDelay: 150,
      reconnectionDelayMax: 2_000,
      randomizationFactor: 0.5,
      timeout: 5_000,
    });
    socket.on("hello", (hello) => {
      this.enter("live");
      this.events.hello(hello, socket.recovered);
      this.askStatus();
    });
    socket.on("positions", (batch) => this.events.positions(batch));
    socket.on("devices", (devices) => this.events.devices(devices));
    socket.on("sharing", () => this.events.sharing());
    socket.on("areas", () => this.events.areas());
    socket.on("alert", (alert) => this.events.alert(alert));
    socket.on("disconnect", (reason) => this.lost(socket, reason));
    socket.on("connect_error", () => this.failed(socket));
    this.socket = socket;
    this.timer = setInterval(() => this.askStatus(), STATUS_MS);
  }

  close(): void {
    clearInterval(this.timer);
    this.socket?.disconnect();
    this.socket?.removeAllListeners();
    this.socket = null;
    this.enter("offline");
  }

  /** Hands the newer token to the open connection, so that it does not end with the older one. */
  renew(token: string): void {
    if (this.socket?.connected) this.socket.emit("renew", token, () => undefined);
  }

  private lost(socket: Socket<ServerEvents, ClientEvents>, reason: string): void {
    if (socket !== this.socket) return;
    this.enter("reconnecting");
    if (reason === "io server disconnect") socket.connect(); // if it means the account, the answer will say so
  }

  /** active: the socket tries again by itself; otherwise the service has refused the token. */
  private failed(socket: Socket<ServerEvents, ClientEvents>): void {
    if (socket !== this.socket) return;
    if (socket.active) this.enter(this.state === "connecting" ? "connecting" : "reconnecting");
    else this.events.refused();
  }

  private askStatus(): void {
    if (!this.socket?.connected) return;
    this.socket.timeout(STATUS_TIMEOUT_MS).emit("status", (error: Error | null, status: StatusAnswer) => {
      if (error === null) this.events.status(status);
    });
  }

  private enter(state: LiveState): void {
    if (state === this.state) return;
    this.state = state;
    this.events.state(state);
  }
}

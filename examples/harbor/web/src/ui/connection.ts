// The state of the live connection, which instance serves this page, and the fleet behind it. Losing the connection and
// finding it again is said once, in words; nothing blinks while it lasts.

import type { Hello, StatusAnswer } from "../contract";
import { duration, instanceLabel, whole } from "../format";
import type { LiveState } from "../live";
import { byId, el, setText } from "./dom";

/** After so long without a position the badge says so. */
const QUIET_MS = 30_000;
const NOTICE_MS = 4_500;
/** Shorter breaks than this are not worth a word. */
const PATIENCE_MS = 400;

const WORDS: Record<LiveState, { label: string; badge: string }> = {
  offline: { label: "Signed out", badge: "OFF" },
  connecting: { label: "Connecting", badge: "…" },
  live: { label: "Live", badge: "LIVE" },
  reconnecting: { label: "Reconnecting", badge: "LOST" },
};

export class ConnectionView {
  private readonly box = byId("connection");
  private readonly label = byId("connection-label");
  private readonly detail = byId("connection-detail");
  private readonly badge = byId("live-badge");
  private readonly notice = byId("notice");
  private readonly instances = byId("instances");
  private serving: Hello | null = null;
  private previous: string | null = null;
  private lost = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private now: LiveState = "connecting";
  private heardMs = -Infinity;

  state(state: LiveState): void {
    if (state === "live") this.heardMs = performance.now(); // silence counts from here
    this.now = state;
    this.box.dataset["state"] = state;
    setText(this.label, WORDS[state].label);
    this.showBadge(false);
    setText(this.detail, state === "live" ? this.servedBy() : "");
    if (state === "reconnecting") this.breaks();
    if (state === "offline") {
      this.lost = false;
      this.hideNotice();
    }
  }

  /** Positions have come. */
  heard(nowMs: number): void {
    this.heardMs = nowMs;
    this.showBadge(false);
  }

  /** Called every second: a connection that brings nothing is not live. */
  update(nowMs: number): void {
    this.showBadge(this.now === "live" && nowMs - this.heardMs > QUIET_MS);
  }

  hello(hello: Hello): void {
    this.previous = this.serving?.instance ?? null;
    this.serving = hello;
    setText(this.detail, this.servedBy());
    this.box.dataset["instance"] = hello.instance;
    this.box.dataset["pid"] = String(hello.pid);
    if (this.lost) {
      const label = instanceLabel(hello.instance);
      const words = this.previous === hello.instance ? `Back on ${label}` : `Carried on by ${label}`;
      this.showNotice("good", words, NOTICE_MS);
    }
    this.lost = false;
  }

  status(status: StatusAnswer): void {
    setText(byId("stored"), whole(status.positions_stored));
    setText(byId("rate"), status.positions_per_second.toFixed(status.positions_per_second < 10 ? 1 : 0));
    setText(byId("viewers"), whole(status.viewers));
    this.instances.replaceChildren(
      ...status.instances.map((instance) => {
        const serves = instance.name === this.serving?.instance;
        const viewers = `${instance.viewers} ${instance.viewers === 1 ? "viewer" : "viewers"}`;
        const jobs = `${instance.jobs} ${instance.jobs === 1 ? "job" : "jobs"}`;
        const about = `pid ${instance.pid} · up ${duration(instance.uptime_s)} · ${viewers} · ${jobs}`;
        const name = el("b", { title: instance.name }, instanceLabel(instance.name), serves ? el("em", {}, "serves you") : null);
        return el("li", serves ? { class: "serves" } : {}, el("i", { "aria-hidden": "true" }), el("div", {}, name, el("span", {}, about)));
      }),
    );
  }

  private servedBy(): string {
    return this.serving === null ? "" : `served by ${instanceLabel(this.serving.instance)}`;
  }

  private showBadge(quiet: boolean): void {
    this.badge.dataset["state"] = quiet ? "quiet" : this.now;
    this.badge.title = quiet ? "Connected, but no vessel reports at the moment" : "";
    setText(this.badge.querySelector("b") as Element, quiet ? "QUIET" : WORDS[this.now].badge);
  }

  private breaks(): void {
    this.lost = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.lost) this.showNotice("warn", "Connection lost. The map keeps its last picture while Harbor reconnects …", null);
    }, PATIENCE_MS);
  }

  private showNotice(tone: string, words: string, ms: number | null): void {
    clearTimeout(this.timer);
    this.notice.dataset["tone"] = tone;
    setText(this.notice, words);
    this.notice.hidden = false;
    if (ms !== null) this.timer = setTimeout(() => this.hideNotice(), ms);
  }

  private hideNotice(): void {
    clearTimeout(this.timer);
    this.notice.hidden = true;
  }
}

// What the page knows about the account's areas and their alerts. It knows nothing of the page itself.

import type { Alert, AlertsAnswer, AreaInfo } from "./contract";
import { type Box, type Point, project } from "./map/projection";
import { boxOf } from "./shape";

const KEPT_MAX = 500;
/** How long an area stays lit up after an alert. */
const GLOW_MS = 2_600;

export interface Area {
  readonly id: number;
  name: string;
  colour: string;
  readonly corners: readonly Point[];
  readonly box: Box;
  /** performance.now() until which it is lit up */
  glowsUntilMs: number;
}

/** What is remembered between visits: the newest alert that the reader has seen, per account. */
export interface Seen {
  read(): number | null;
  write(id: number): void;
}

export class AreaStore {
  areas: Area[] = [];
  /** newest first */
  alerts: Alert[] = [];
  /** where the next page of older alerts begins; null: there are none */
  next: number | null = null;
  loaded = false;
  private seen: Seen | null = null;

  get(id: number): Area | undefined {
    return this.areas.find((area) => area.id === id);
  }

  clear(seen: Seen | null): void {
    this.seen = seen;
    this.areas = [];
    this.alerts = [];
    this.next = null;
    this.loaded = false;
  }

  /** The whole answer of the service. Alerts of areas that are gone go, too. */
  setAreas(infos: readonly AreaInfo[]): void {
    const known = new Map(this.areas.map((area) => [area.id, area]));
    this.areas = infos.map((info) => {
      const area = known.get(info.id);
      return area === undefined ? areaOf(info) : Object.assign(area, { name: info.name, colour: info.colour });
    });
    this.alerts = this.alerts.filter((alert) => this.get(alert.area) !== undefined);
  }

  /** The newest page: after every connection. What it does not name and is as new may no longer be seen. */
  replaceAlerts(answer: AlertsAnswer): void {
    const live = this.alerts.filter((alert) => alert.id > (answer.alerts[0]?.id ?? 0));
    this.alerts = [...live, ...answer.alerts];
    this.next = answer.next;
    this.loaded = true;
    if (this.seen?.read() === null) this.markSeen(); // the first visit: what was before it is no news
  }

  addOlder(answer: AlertsAnswer): void {
    const known = new Set(this.alerts.map((alert) => alert.id));
    this.alerts.push(...answer.alerts.filter((alert) => !known.has(alert.id)));
    this.next = answer.next;
  }

  /** One that has just been raised; false for one that is here already: the service may say it twice. */
  add(alert: Alert, nowMs: number): boolean {
    if (this.alerts.some((known) => known.id === alert.id)) return false;
    const at = this.alerts.findIndex((known) => known.id < alert.id);
    this.alerts.splice(at === -1 ? this.alerts.length : at, 0, alert);
    if (this.alerts.length > KEPT_MAX) {
      this.alerts.length = KEPT_MAX;
      this.next = this.alerts.at(-1)?.id ?? null;
    }
    const area = this.get(alert.area);
    if (area !== undefined) area.glowsUntilMs = nowMs + GLOW_MS;
    return true;
  }

  get unread(): number {
    const seen = this.seen?.read() ?? Infinity;
    return this.alerts.filter((alert) => alert.id > seen).length;
  }

  /** Whether there are more unread ones than are loaded. */
  get unreadBeyond(): boolean {
    return this.next !== null && this.unread === this.alerts.length;
  }

  markSeen(): void {
    const newest = Math.max(this.alerts[0]?.id ?? 0, this.seen?.read() ?? 0);
    if (newest !== this.seen?.read()) this.seen?.write(newest);
  }
}

function areaOf(info: AreaInfo): Area {
  const corners = info.points.map(([lat, lon]) => project(lat, lon));
  return { id: info.id, name: info.name, colour: info.colour, corners, box: boxOf(corners), glowsUntilMs: 0 };
}

/** Keeps the newest seen alert of an account in this browser. */
export function seenOf(email: string): Seen {
  const key = `harbor-alerts-seen:${email}`;
  return {
    read: () => {
      const kept = localStorage.getItem(key);
      return kept === null ? null : Number(kept);
    },
    write: (id) => localStorage.setItem(key, String(id)),
  };
}

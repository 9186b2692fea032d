// What the page knows about vessels, and which of them the filters let through. It knows nothing of the page itself.

import type { DeviceInfo, PositionTuple, TrailsAnswer, VesselsAnswer } from "./contract";
import { kindOf } from "./kinds";
import { directionDeg, nauticalMiles, type Point, project } from "./map/projection";
import { Motion, turnTowards } from "./motion";

const MOVING_KN = 0.6;
const TRAIL_MAX = 80;
/** A hole of this length, or a leap of this size, is no track: the trail breaks and the marker jumps. */
const BREAK_MS = 20 * 60_000;
const LEAP_NM = 4;
const EARLY_MAX = 2_000;
const BACKWARDS_DEG = 120;

export interface TrailPoint extends Point {
  timeMs: number;
  breaks: boolean;
}

export interface Vessel {
  readonly id: string;
  info: DeviceInfo;
  timeMs: number;
  /** performance.now() when the newest report came */
  heardMs: number;
  lat: number;
  lon: number;
  speedKn: number | null;
  courseDeg: number | null;
  headingDeg: number | null;
  shownHeadingDeg: number;
  moving: boolean;
  label: string;
  motion: Motion;
  trail: TrailPoint[];
}

export type Movement = "all" | "moving" | "still";

export interface Filter {
  text: string;
  movement: Movement;
  kinds: ReadonlySet<string>;
}

export class Store {
  selected: string | null = null;
  filter: Filter = { text: "", movement: "all", kinds: new Set() };
  /** Vessels that the filters let through (and the selected one), in the order of the list. */
  visible: Vessel[] = [];
  private readonly infos = new Map<string, DeviceInfo>();
  private readonly vessels = new Map<string, Vessel>();
  /** Reports of vessels that the picture, which is on its way, may bring. */
  private early: PositionTuple[] = [];

  get size(): number {
    return this.vessels.size;
  }

  get(id: string): Vessel | undefined {
    return this.vessels.get(id);
  }

  all(): Iterable<Vessel> {
    return this.vessels.values();
  }

  /** The whole answer of the service: what is not in it may no longer be seen. */
  replace(answer: VesselsAnswer, nowMs: number): void {
    const allowed = new Set(answer.devices.map((device) => device.id));
    for (const id of [...this.infos.keys()]) if (!allowed.has(id)) this.forget(id);
    this.describe(answer.devices);
    this.report(this.early, nowMs);
    this.report(answer.positions, nowMs);
    this.early = [];
  }

  clear(): void {
    for (const id of [...this.infos.keys()]) this.forget(id);
    this.early = [];
    this.refresh();
  }

  describe(devices: readonly DeviceInfo[]): void {
    for (const info of devices) {
      this.infos.set(info.id, info);
      const vessel = this.vessels.get(info.id);
      if (vessel !== undefined) Object.assign(vessel, { info, label: labelOf(info) });
    }
  }

  /** Newer reports move their vessels; older ones are left out, those of unknown devices wait for the picture. */
  report(batch: readonly PositionTuple[], nowMs: number): void {
    for (const tuple of batch) {
      const vessel = this.vessels.get(tuple[0]);
      if (vessel === undefined) this.add(tuple, nowMs);
      else if (tuple[1] > vessel.timeMs) advance(vessel, tuple, nowMs);
    }
  }

  /** Past positions: they go before what came live, and where nothing came while the connection was lost. */
  addTrails(answer: TrailsAnswer): void {
    for (const [id, points] of Object.entries(answer.trails)) {
      const vessel = this.vessels.get(id);
      if (vessel === undefined) continue;
      const known = new Map<number, Point>(vessel.trail.map((point) => [point.timeMs, point]));
      for (const [timeMs, lat, lon] of points)
        if (timeMs < vessel.timeMs && !known.has(timeMs)) known.set(timeMs, project(lat, lon));
      const trail: TrailPoint[] = [];
      for (const [timeMs, at] of [...known].sort(([a], [b]) => a - b)) trail.push(trailPoint(trail.at(-1), at, timeMs));
      vessel.trail = trail.slice(-TRAIL_MAX);
    }
  }

  setFilter(change: Partial<Filter>): void {
    this.filter = { ...this.filter, ...change };
    this.refresh();
  }

  refresh(): void {
    const words = this.filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    this.visible = [...this.vessels.values()].filter((vessel) => vessel.id === this.selected || this.passes(vessel, words));
    this.visible.sort((a, b) => Number(b.moving) - Number(a.moving) || a.label.localeCompare(b.label));
  }

  countByKind(): Map<string, number> {
    const counts = new Map<string, number>();
    for (const vessel of this.vessels.values()) {
      const kind = kindOf(vessel.info.kind).id;
      counts.set(kind, (counts.get(kind) ?? 0) + 1);
    }
    return counts;
  }

  private passes(vessel: Vessel, words: readonly string[]): boolean {
    const { movement, kinds } = this.filter;
    if (movement !== "all" && vessel.moving !== (movement === "moving")) return false;
    if (kinds.size > 0 && !kinds.has(kindOf(vessel.info.kind).id)) return false;
    const text = `${vessel.label} ${vessel.info.callsign} ${vessel.id} ${kindOf(vessel.info.kind).label}`.toLowerCase();
    return words.every((word) => text.includes(word));
  }

  private add(tuple: PositionTuple, nowMs: number): void {
    const [id, timeMs, lat, lon, speedKn, courseDeg, headingDeg] = tuple;
    const info = this.infos.get(id);
    if (info === undefined) {
      this.early.push(tuple);
      if (this.early.length > EARLY_MAX) this.early.shift();
      return;
    }
    const at = project(lat, lon);
    this.vessels.set(id, {
      id, info, timeMs, heardMs: nowMs, lat, lon, speedKn, courseDeg, headingDeg,
      shownHeadingDeg: headingDeg ?? courseDeg ?? 0,
      moving: (speedKn ?? 0) >= MOVING_KN,
      label: labelOf(info),
      motion: new Motion(at, nowMs),
      trail: [{ ...at, timeMs, breaks: true }],
    });
  }

  private forget(id: string): void {
    this.infos.delete(id);
    this.vessels.delete(id);
    if (this.selected === id) this.selected = null;
  }
}

/** Where the marker points: to the heading, or to the course of a vessel that moves backwards: the ferries of the harbor
 *  have a bow at both ends. Null when nothing is known. */
export function pointingDeg(vessel: Vessel): number | null {
  const { headingDeg, courseDeg } = vessel;
  if (headingDeg === null || courseDeg === null || !vessel.moving) return headingDeg ?? courseDeg;
  const apart = Math.abs(((headingDeg - courseDeg + 540) % 360) - 180);
  return apart > BACKWARDS_DEG ? courseDeg : headingDeg;
}

export function nextHeading(vessel: Vessel, elapsedMs: number): number {
  const wanted = pointingDeg(vessel);
  return wanted === null ? vessel.shownHeadingDeg : turnTowards(vessel.shownHeadingDeg, wanted, elapsedMs);
}

function advance(vessel: Vessel, tuple: PositionTuple, nowMs: number): void {
  const [, timeMs, lat, lon, speedKn, courseDeg, headingDeg] = tuple;
  const to = project(lat, lon);
  const point = trailPoint(vessel.trail.at(-1), to, timeMs);
  if (point.breaks) vessel.motion.jumpTo(to, nowMs);
  else vessel.motion.moveTo(to, nowMs);
  vessel.trail.push(point);
  if (vessel.trail.length > TRAIL_MAX) vessel.trail.shift();
  const before = { x: vessel.trail.at(-2)?.x ?? to.x, y: vessel.trail.at(-2)?.y ?? to.y };
  const moving = (speedKn ?? 0) >= MOVING_KN;
  const course = courseDeg ?? (moving && (before.x !== to.x || before.y !== to.y) ? directionDeg(before, to) : vessel.courseDeg);
  Object.assign(vessel, { timeMs, heardMs: nowMs, lat, lon, speedKn, courseDeg: course, headingDeg, moving });
}

function trailPoint(before: TrailPoint | undefined, at: Point, timeMs: number): TrailPoint {
  const breaks = before === undefined || timeMs - before.timeMs > BREAK_MS || nauticalMiles(before, at) > LEAP_NM;
  return { x: at.x, y: at.y, timeMs, breaks };
}

function labelOf(info: DeviceInfo): string {
  return info.name || info.callsign || info.id.replace(/^\D*/, "MMSI ");
}

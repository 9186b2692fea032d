// How a marker moves between two reports. Pure: time comes in as a number.
//
// A vessel reports about once a minute, and a replay may be faster. The marker travels from where it is shown to the newest
// report over the time that reports usually need to come. So it shows at most one report behind, never runs past what is
// known (onto land, for example) and never jumps.

import type { Point } from "./map/projection";

const FIRST_MS = 1_500;
const SHORTEST_MS = 300;
const LONGEST_MS = 75_000;
/** Slightly longer than the usual interval: better a little late than standing still until the next report. */
const SLACK = 1.12;

export class Motion {
  private from: Point;
  private to: Point;
  private startMs: number;
  private durationMs = 0;
  private intervalMs = 0;
  private arrivedMs: number;

  constructor(at: Point, nowMs: number) {
    this.from = at;
    this.to = at;
    this.startMs = nowMs;
    this.arrivedMs = nowMs;
  }

  /** A new report has come: travel there from where the marker is shown now. */
  moveTo(point: Point, nowMs: number): void {
    const sinceMs = Math.max(1, nowMs - this.arrivedMs);
    this.intervalMs = this.intervalMs === 0 ? sinceMs : 0.6 * this.intervalMs + 0.4 * sinceMs;
    this.from = this.at(nowMs);
    this.to = point;
    this.startMs = nowMs;
    this.arrivedMs = nowMs;
    const expected = this.intervalMs === 0 ? FIRST_MS : this.intervalMs * SLACK;
    this.durationMs = Math.min(LONGEST_MS, Math.max(SHORTEST_MS, expected));
  }

  /** The vessel is somewhere else altogether (a new round of the replay): no travel. */
  jumpTo(point: Point, nowMs: number): void {
    this.from = point;
    this.to = point;
    this.durationMs = 0;
    this.startMs = nowMs;
    this.arrivedMs = nowMs;
  }

  at(nowMs: number): Point {
    const share = this.durationMs === 0 ? 1 : Math.min(1, Math.max(0, (nowMs - this.startMs) / this.durationMs));
    return { x: this.from.x + (this.to.x - this.from.x) * share, y: this.from.y + (this.to.y - this.from.y) * share };
  }
}

/** Turns the shown heading towards the wanted one, the short way round. */
export function turnTowards(shownDeg: number, wantedDeg: number, elapsedMs: number): number {
  const difference = ((wantedDeg - shownDeg + 540) % 360) - 180;
  return (shownDeg + difference * (1 - Math.exp(-elapsedMs / 260)) + 360) % 360;
}

// An area while it is drawn: its corners so far, and the end of the line that follows the hand. Pure.

import { closingCrosses, CORNERS_MAX, CORNERS_MIN, edgeCrosses } from "../shape";
import type { Point } from "./projection";

export type Added = "added" | "same" | "crosses" | "full";

export class Sketch {
  readonly corners: Point[] = [];
  /** where the next corner would be, for showing it */
  tip: Point | null = null;
  colour = "teal";

  /** `near`: how close two corners are the same one, in units of the square. */
  add(corner: Point, near: number): Added {
    const last = this.corners.at(-1);
    if (last !== undefined && distance(last, corner) < near) return "same";
    if (this.corners.length === CORNERS_MAX) return "full";
    if (edgeCrosses(this.corners, corner)) return "crosses";
    this.corners.push(corner);
    return "added";
  }

  undo(): void {
    this.corners.pop();
  }

  /** Why it cannot be closed yet; null when it can. */
  get hindrance(): "few" | "crosses" | null {
    if (this.corners.length < CORNERS_MIN) return "few";
    return closingCrosses(this.corners) ? "crosses" : null;
  }

  /** Whether a tap there means the first corner: close the area. */
  closesAt(at: Point, near: number): boolean {
    const first = this.corners[0];
    return first !== undefined && this.corners.length >= CORNERS_MIN && distance(first, at) < near;
  }

  get tipCrosses(): boolean {
    return this.tip !== null && edgeCrosses(this.corners, this.tip);
  }
}

function distance(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

// Rings of corners on the map's square: whether one crosses itself, whether a point lies inside, where its box is. Pure.
// The service decides in the end (src/harbor/areas/shape.py); this is for telling the hand that draws, at once.

import type { Box, Point } from "./map/projection";
import { unproject } from "./map/projection";

export const CORNERS_MIN = 3;
export const CORNERS_MAX = 100;

/** Whether a new corner's edge would meet an edge that is there already. */
export function edgeCrosses(corners: readonly Point[], next: Point): boolean {
  const last = corners.at(-1);
  if (last === undefined) return false;
  for (let index = 0; index + 2 < corners.length; index += 1)
    if (meet(corners[index] as Point, corners[index + 1] as Point, last, next)) return true;
  const before = corners.at(-2);
  return before !== undefined && turnsBack(before, last, next);
}

/** Whether the edge from the last corner to the first would meet another one. */
export function closingCrosses(corners: readonly Point[]): boolean {
  const first = corners[0] as Point;
  const last = corners.at(-1) as Point;
  for (let index = 1; index + 2 < corners.length; index += 1)
    if (meet(corners[index] as Point, corners[index + 1] as Point, last, first)) return true;
  return turnsBack(corners.at(-2) as Point, last, first) || turnsBack(last, first, corners[1] as Point);
}

export function contains(corners: readonly Point[], at: Point): boolean {
  let inside = false;
  let a = corners.at(-1) as Point;
  for (const b of corners) {
    if (a.y > at.y !== b.y > at.y && at.x < ((b.x - a.x) * (at.y - a.y)) / (b.y - a.y) + a.x) inside = !inside;
    a = b;
  }
  return inside;
}

export function boxOf(corners: readonly Point[]): Box {
  const places = corners.map(unproject);
  const lats = places.map(({ lat }) => lat);
  const lons = places.map(({ lon }) => lon);
  return { west: Math.min(...lons), south: Math.min(...lats), east: Math.max(...lons), north: Math.max(...lats) };
}

function meet(a: Point, b: Point, c: Point, d: Point): boolean {
  const [c1, d1, a1, b1] = [side(a, b, c), side(a, b, d), side(c, d, a), side(c, d, b)];
  if (c1 * d1 < 0 && a1 * b1 < 0) return true;
  return (c1 === 0 && within(a, b, c)) || (d1 === 0 && within(a, b, d)) || (a1 === 0 && within(c, d, a)) || (b1 === 0 && within(c, d, b));
}

function side(a: Point, b: Point, c: Point): number {
  return Math.sign((b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x));
}

function within(a: Point, b: Point, c: Point): boolean {
  return Math.min(a.x, b.x) <= c.x && c.x <= Math.max(a.x, b.x) && Math.min(a.y, b.y) <= c.y && c.y <= Math.max(a.y, b.y);
}

function turnsBack(a: Point, b: Point, c: Point): boolean {
  return side(a, b, c) === 0 && (b.x - a.x) * (c.x - b.x) + (b.y - a.y) * (c.y - b.y) < 0;
}

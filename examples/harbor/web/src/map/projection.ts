// Web Mercator on a unit square: the world is 1 wide, x to the east, y to the south. Pure.

export interface Point {
  x: number;
  y: number;
}

export interface Box {
  west: number;
  south: number;
  east: number;
  north: number;
}

const EARTH_M = 40_075_016.686;
const NAUTICAL_MILE_M = 1_852;

export function project(lat: number, lon: number): Point {
  const sine = Math.sin((lat * Math.PI) / 180);
  return { x: lon / 360 + 0.5, y: 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI) };
}

export function unproject(point: Point): { lat: number; lon: number } {
  const lat = (Math.atan(Math.sinh(Math.PI * (1 - 2 * point.y))) * 180) / Math.PI;
  return { lat, lon: (point.x - 0.5) * 360 };
}

/** How many metres one unit of the square is at this latitude. */
export function metresPerUnit(lat: number): number {
  return EARTH_M * Math.cos((lat * Math.PI) / 180);
}

/** Distance in nautical miles between two near points of the square. */
export function nauticalMiles(a: Point, b: Point): number {
  const lat = unproject({ x: a.x, y: (a.y + b.y) / 2 }).lat;
  return (Math.hypot(a.x - b.x, a.y - b.y) * metresPerUnit(lat)) / NAUTICAL_MILE_M;
}

/** Direction from a to b in degrees, 0 is north. */
export function directionDeg(a: Point, b: Point): number {
  return ((Math.atan2(b.x - a.x, a.y - b.y) * 180) / Math.PI + 360) % 360;
}

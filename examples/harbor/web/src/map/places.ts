// Names on the map. The land polygons carry none; these are common geographical names, placed by hand.

import { type Point, project } from "./projection";

export interface Place {
  name: string;
  water: boolean;
  /** shown from this zoom on */
  zoom: number;
  at: Point;
  size: number;
}

function place(name: string, lat: number, lon: number, zoom: number, size: number, water = false): Place {
  return { name, water, zoom, size, at: project(lat, lon) };
}

export const PLACES: readonly Place[] = [
  place("Manhattan", 40.778, -73.968, 10.2, 13),
  place("Brooklyn", 40.642, -73.951, 10.2, 13),
  place("Queens", 40.713, -73.82, 10.2, 13),
  place("The Bronx", 40.852, -73.868, 10.6, 13),
  place("Staten Island", 40.578, -74.15, 10.2, 13),
  place("Newark", 40.728, -74.195, 10.4, 12),
  place("Jersey City", 40.722, -74.068, 11.2, 11),
  place("Bayonne", 40.668, -74.118, 11.6, 11),
  place("Hoboken", 40.7435, -74.034, 12.4, 11),
  place("Elizabeth", 40.663, -74.212, 11.2, 11),
  place("Sandy Hook", 40.447, -74.004, 11.2, 11),
  place("The Rockaways", 40.583, -73.83, 11.4, 11),
  place("Coney Island", 40.5785, -73.985, 12.0, 11),
  place("Governors Island", 40.6885, -74.018, 13.2, 10),
  place("Upper Bay", 40.685, -74.047, 11.0, 13, true),
  place("Lower Bay", 40.517, -74.085, 10.2, 14, true),
  place("Raritan Bay", 40.485, -74.19, 10.6, 12, true),
  place("Newark Bay", 40.695, -74.119, 11.8, 11, true),
  place("Jamaica Bay", 40.617, -73.84, 10.9, 12, true),
  place("The Narrows", 40.606, -74.043, 11.9, 11, true),
  place("Kill Van Kull", 40.6475, -74.098, 12.6, 10, true),
  place("Arthur Kill", 40.606, -74.203, 12.2, 10, true),
  place("Hudson River", 40.775, -74.004, 11.8, 11, true),
  place("East River", 40.7125, -73.976, 12.2, 11, true),
  place("Long Island Sound", 40.858, -73.735, 10.6, 12, true),
  place("Ambrose Channel", 40.505, -74.005, 11.6, 11, true),
  place("New York Bight", 40.475, -73.8, 10.2, 14, true),
];

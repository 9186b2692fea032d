// What the service and the page say to each other: the shapes of the HTTP answers and of the Socket.IO events. The other
// half is the routes of src/harbor and live/broadcast.py; both change together.

/** [device, fix time in ms, latitude, longitude, speed in knots, course in degrees, heading in degrees] */
export type PositionTuple = [
  id: string,
  timeMs: number,
  lat: number,
  lon: number,
  speedKn: number | null,
  courseDeg: number | null,
  headingDeg: number | null,
];

export interface DeviceInfo {
  id: string;
  name: string;
  kind: string;
  callsign: string;
  length_m: number | null;
  width_m: number | null;
  owner: string;
}

export interface VesselsAnswer {
  devices: DeviceInfo[];
  positions: PositionTuple[];
}

export interface TrailsAnswer {
  /** device -> [fix time in ms, latitude, longitude], oldest first */
  trails: Record<string, [timeMs: number, lat: number, lon: number][]>;
}

export interface TrackAnswer {
  /** [fix time in ms, latitude, longitude, speed in knots], oldest first */
  points: [timeMs: number, lat: number, lon: number, speedKn: number | null][];
}

export interface SessionAnswer {
  token: string;
  expires_in_s: number;
  account: { email: string; name: string; demo: boolean };
}

export interface ConfigAnswer {
  demo: boolean;
}

export interface InstanceStatus {
  name: string;
  pid: number;
  uptime_s: number;
  viewers: number;
  /** the vessels that it watches for areas */
  jobs: number;
}

export interface StatusAnswer {
  instances: InstanceStatus[];
  positions_stored: number;
  positions_per_second: number;
  viewers: number;
}

export interface Hello {
  instance: string;
  pid: number;
}

export interface Share {
  viewer: string;
  device: string | null;
}

export interface AreaInfo {
  id: number;
  name: string;
  colour: string;
  points: [lat: number, lon: number][];
}

export interface Alert {
  id: number;
  /** the area's id */
  area: number;
  device: string;
  kind: "enter" | "leave";
  /** the time of the first fix on the other side, and when the stay began, as the device tells time */
  at_ms: number;
  since_ms: number;
  lat: number;
  lon: number;
  /** when the service raised it */
  raised_ms: number;
}

export interface AlertsAnswer {
  alerts: Alert[];
  /** the `before` of the next page, null on the last one */
  next: number | null;
}

export interface ServerEvents {
  hello: (hello: Hello) => void;
  positions: (batch: PositionTuple[]) => void;
  devices: (devices: DeviceInfo[]) => void;
  sharing: () => void;
  areas: () => void;
  alert: (alert: Alert) => void;
}

export interface ClientEvents {
  status: (answer: (status: StatusAnswer) => void) => void;
  renew: (token: string, answer: (ok: boolean) => void) => void;
}

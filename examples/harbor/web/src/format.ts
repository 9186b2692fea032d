// Numbers and times as people read them. Pure.

const COMPASS = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"] as const;
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZone: "UTC" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });

export function knots(speedKn: number | null): string {
  return speedKn === null ? "–" : speedKn.toFixed(1);
}

export function bearing(degrees: number | null): string {
  if (degrees === null) return "–";
  const whole = Math.round(degrees) % 360;
  return `${String(whole).padStart(3, "0")}° ${COMPASS[Math.round(whole / 45) % 8]}`;
}

/** Degrees and decimal minutes, as on a chart: 40°41.30′ N */
export function coordinate(value: number, positive: string, negative: string): string {
  const total = Math.abs(value);
  let degrees = Math.floor(total);
  let minutes = Math.round((total - degrees) * 6000) / 100;
  if (minutes === 60) [degrees, minutes] = [degrees + 1, 0];
  return `${degrees}°${minutes.toFixed(2).padStart(5, "0")}′ ${value < 0 ? negative : positive}`;
}

export function ago(seconds: number): string {
  if (seconds < 1.5) return "just now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

export function duration(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

export function whole(value: number): string {
  return WHOLE.format(value);
}

export function clock(timeMs: number): string {
  return CLOCK.format(timeMs);
}

export function day(timeMs: number): string {
  return DAY.format(timeMs);
}

/** "harbor-host-4711.2" is the second instance that one supervisor runs: "harbor.2" says enough on one machine. */
export function instanceLabel(name: string): string {
  const parts = /^([^-]+)-.+\.(\d+)$/.exec(name);
  return parts === null ? name : `${parts[1]}.${parts[2]}`;
}

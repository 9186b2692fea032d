// The card of the selected vessel: built once per selection, then only its figures change.

import type { TrackAnswer } from "../contract";
import { ago, bearing, clock, coordinate, day, knots } from "../format";
import { kindOf } from "../kinds";
import { pointingDeg, type Vessel } from "../store";
import { byId, el, icon, setText, svg } from "./dom";

const CHART_WIDTH = 300;
const CHART_HEIGHT = 56;
const HOUR_MS = 3_600_000;

export interface DetailEvents {
  closed(): void;
  followed(): void;
}

export class DetailCard {
  private readonly card = byId("detail");
  private vessel: Vessel | null = null;
  private figures = new Map<string, HTMLElement>();
  private needle: SVGElement | null = null;
  private track: TrackAnswer["points"] = [];

  constructor(private readonly events: DetailEvents) {}

  show(vessel: Vessel, following: boolean): void {
    this.vessel = vessel;
    this.track = [];
    this.figures = new Map();
    const kind = kindOf(vessel.info.kind);
    this.card.dataset["kind"] = kind.id;
    this.card.replaceChildren(this.head(vessel, kind.label), this.gauges(), this.chart(), this.facts(vessel), this.actions(following));
    this.card.hidden = false;
    this.update(performance.now());
  }

  hide(): void {
    this.vessel = null;
    this.card.hidden = true;
    this.card.replaceChildren();
  }

  setFollowing(following: boolean): void {
    const button = this.card.querySelector(".follow");
    button?.setAttribute("aria-pressed", String(following));
    const label = button?.querySelector("span");
    if (label) setText(label, following ? "Following" : "Follow");
  }

  /** The past hour, from the database; the live reports go on from there. */
  setTrack(id: string, track: TrackAnswer): void {
    if (this.vessel?.id !== id) return;
    this.track = track.points;
    this.drawChart();
  }

  update(nowMs: number): void {
    const vessel = this.vessel;
    if (vessel === null) return;
    const newest = this.track.at(-1);
    if (newest !== undefined && vessel.timeMs > newest[0]) {
      this.track.push([vessel.timeMs, vessel.lat, vessel.lon, vessel.speedKn]);
      this.drawChart();
    }
    this.set("speed", knots(vessel.speedKn));
    this.set("course", bearing(vessel.courseDeg));
    this.set("heading", bearing(vessel.headingDeg));
    this.set("position", `${coordinate(vessel.lat, "N", "S")}  ${coordinate(vessel.lon, "E", "W")}`);
    this.set("heard", ago((nowMs - vessel.heardMs) / 1_000));
    this.set("fix", `${clock(vessel.timeMs)} UTC, ${day(vessel.timeMs)}`);
    this.set("state", vessel.moving ? "Under way" : "Moored");
    if (this.needle !== null) this.needle.style.rotate = `${pointingDeg(vessel) ?? 0}deg`;
  }

  private head(vessel: Vessel, kind: string): HTMLElement {
    const close = el("button", { type: "button", class: "round close", "aria-label": "Close the card" }, icon("close"));
    close.addEventListener("click", () => this.events.closed());
    const tags = el("p", { class: "tags" }, el("span", { class: "tag tag-kind" }, kind), this.figure("state", "span", "tag"));
    const title = el("div", { class: "detail-title" }, el("h2", { tabindex: "-1" }, vessel.label), tags);
    return el("header", { class: "detail-head" }, title, close);
  }

  private gauges(): HTMLElement {
    const speed = el("div", { class: "gauge" }, this.figure("speed", "b"), el("span", {}, "knots"));
    const about = el("dl", {}, el("div", {}, el("dt", {}, "Course"), this.figure("course", "dd")), el("div", {}, el("dt", {}, "Heading"), this.figure("heading", "dd")));
    return el("div", { class: "gauges" }, speed, about, this.compass());
  }

  private compass(): Node {
    this.needle = svg("path", { d: "M32 11 38 38.5 32 34.5 26 38.5Z", class: "needle" });
    const ticks = Array.from({ length: 24 }, (_, index) =>
      svg("path", { d: index % 6 === 0 ? "M32 2.5v6" : "M32 2.5v3", transform: `rotate(${index * 15} 32 32)`, class: "tick" }),
    );
    return svg("svg", { class: "compass", viewBox: "0 0 64 64", "aria-hidden": "true" }, ...ticks, this.needle);
  }

  private chart(): HTMLElement {
    const picture = svg("svg", { class: "chart", viewBox: `0 0 ${CHART_WIDTH} ${CHART_HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Speed over the past hour" });
    const caption = el("figcaption", {}, el("span", {}, "Speed, past hour"), this.figure("top", "span"));
    return el("figure", { class: "speed" }, caption, picture);
  }

  private drawChart(): void {
    const picture = this.card.querySelector(".chart");
    const endMs = this.track.at(-1)?.[0];
    if (picture === null || endMs === undefined) return;
    const points = this.track.filter(([timeMs]) => endMs - timeMs <= HOUR_MS);
    const top = Math.max(4, ...points.map(([, , , speed]) => speed ?? 0));
    const line = points
      .map(([timeMs, , , speed]) => {
        const x = CHART_WIDTH * (1 - (endMs - timeMs) / HOUR_MS);
        return `${x.toFixed(1)},${(CHART_HEIGHT - 3 - ((speed ?? 0) / top) * (CHART_HEIGHT - 8)).toFixed(1)}`;
      })
      .join(" L");
    const firstX = (CHART_WIDTH * (1 - (endMs - (points[0]?.[0] ?? endMs)) / HOUR_MS)).toFixed(1);
    const area = svg("path", { class: "chart-area", d: `M${firstX},${CHART_HEIGHT} L${line} L${CHART_WIDTH},${CHART_HEIGHT}Z` });
    picture.replaceChildren(area, svg("path", { class: "chart-line", d: `M${line}`, "vector-effect": "non-scaling-stroke" }));
    this.set("top", `up to ${Math.max(0, ...points.map(([, , , speed]) => speed ?? 0)).toFixed(1)} kn`);
  }

  private facts(vessel: Vessel): HTMLElement {
    const { length_m: length, width_m: width, callsign, owner } = vessel.info;
    const size = length === null ? "–" : width === null ? `${length} m` : `${length} × ${width} m`;
    const rows: [string, Node | string][] = [
      ["Last report", this.figure("heard", "span")],
      ["Reported time", this.figure("fix", "span")],
      ["Position", this.figure("position", "span")],
      ["Size", size],
      ["Call sign", callsign || "–"],
      ["Device", vessel.id],
      ["Shared by", owner],
    ];
    return el("dl", { class: "facts" }, ...rows.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
  }

  private actions(following: boolean): HTMLElement {
    const follow = el("button", { type: "button", class: "follow", "aria-pressed": String(following), "aria-keyshortcuts": "f" }, icon("follow"), el("span", {}, following ? "Following" : "Follow"), el("kbd", { "aria-hidden": "true" }, "F"));
    follow.addEventListener("click", () => this.events.followed());
    return el("div", { class: "actions" }, follow);
  }

  private figure(name: string, tag: "b" | "span" | "dd", cssClass = ""): HTMLElement {
    const element = el(tag, cssClass === "" ? {} : { class: cssClass });
    this.figures.set(name, element);
    return element;
  }

  private set(name: string, text: string): void {
    const element = this.figures.get(name);
    if (element !== undefined) setText(element, text);
  }
}

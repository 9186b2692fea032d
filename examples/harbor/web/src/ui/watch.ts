// The watch: the feed of alerts and the list of areas, in one panel that stays open beside the map. New alerts are said to
// screen readers politely, and no more often than can be listened to.

import type { Area, AreaStore } from "../areas";
import type { Alert } from "../contract";
import { ago, clock, day, duration } from "../format";
import type { Store } from "../store";
import { contains } from "../shape";
import { byId, el, icon, setText } from "./dom";

const SAY_MS = 6_000;
const BADGE_MAX = 99;

type Tab = "alerts" | "areas";

export interface WatchEvents {
  alertPicked(alert: Alert): void;
  areaPicked(area: Area): void;
  edited(area: Area): void;
  draw(keyboard: boolean): void;
  older(): void;
  moved(): void;
}

interface Row {
  element: HTMLElement;
  told: HTMLElement;
  words: HTMLElement;
}

export class Watch {
  private readonly button = byId("watch");
  private readonly badge = byId("watch-badge");
  private readonly panel = byId("watch-panel");
  private readonly feed = byId("alerts");
  private readonly list = byId("areas");
  private readonly older = byId<HTMLButtonElement>("alerts-older");
  private readonly rows = new Map<number, Row>();
  private tab: Tab = "alerts";
  private unsaid: Alert[] = [];
  private saidMs = -Infinity;

  constructor(
    private readonly areas: AreaStore,
    private readonly store: Store,
    private readonly events: WatchEvents,
  ) {
    this.button.addEventListener("click", () => (this.open ? this.close() : this.show(this.tab)));
    byId("watch-close").addEventListener("click", () => this.close());
    for (const tab of ["alerts", "areas"] as const) byId(`tab-${tab}`).addEventListener("click", () => this.show(tab));
    this.older.addEventListener("click", () => this.events.older());
    byId("areas-draw").addEventListener("click", (event) => this.events.draw(event.detail === 0));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
    });
  }

  get open(): boolean {
    return !this.panel.hidden;
  }

  show(tab: Tab): void {
    this.tab = tab;
    this.panel.hidden = false;
    this.button.setAttribute("aria-expanded", "true");
    for (const name of ["alerts", "areas"] as const) {
      byId(`tab-${name}`).setAttribute("aria-pressed", String(name === tab));
      byId(`pane-${name}`).hidden = name !== tab;
    }
    this.update();
    this.events.moved();
  }

  close(): void {
    if (!this.open) return;
    const inside = this.panel.contains(document.activeElement);
    this.panel.hidden = true;
    this.button.setAttribute("aria-expanded", "false");
    if (inside) this.button.focus();
    this.update();
    this.events.moved();
  }

  /** Brings the row of an area into view and to the keyboard. */
  reveal(area: Area): void {
    this.show("areas");
    this.list.querySelector<HTMLElement>(`[data-id="${area.id}"] .area-name`)?.focus();
  }

  /** An alert that has just come. */
  arrived(alert: Alert, nowMs: number): void {
    this.unsaid.push(alert);
    this.say(nowMs);
    this.update();
  }

  /** Called every second, too: times go on. */
  update(nowMs = performance.now()): void {
    if (this.open && this.tab === "alerts" && document.visibilityState === "visible") this.areas.markSeen();
    this.showBadge();
    this.say(nowMs);
    if (!this.open) return;
    if (this.tab === "alerts") this.fillFeed();
    else this.fillAreas();
  }

  private showBadge(): void {
    const { unread, unreadBeyond } = this.areas;
    const many = unread > BADGE_MAX || unreadBeyond;
    this.badge.hidden = unread === 0;
    setText(this.badge, many ? `${Math.min(unread, BADGE_MAX)}+` : String(unread));
    const words = unread === 0 ? "Alerts and areas" : `Alerts and areas, ${many ? "more than " : ""}${unread} unread`;
    if (this.button.getAttribute("aria-label") !== words) this.button.setAttribute("aria-label", words);
  }

  private say(nowMs: number): void {
    const newest = this.unsaid.at(-1);
    if (newest === undefined || nowMs - this.saidMs < SAY_MS) return;
    const more = this.unsaid.length - 1;
    setText(byId("announce-alerts"), `${more > 0 ? `${more + 1} alerts. The newest: ` : ""}${this.sentence(newest)}`);
    this.unsaid = [];
    this.saidMs = nowMs;
  }

  private sentence(alert: Alert): string {
    return `${this.who(alert)} ${alert.kind === "enter" ? "entered" : "left"} ${this.areas.get(alert.area)?.name ?? "an area"}`;
  }

  private who(alert: Alert): string {
    return this.store.get(alert.device)?.label ?? alert.device;
  }

  // --- the feed ---------------------------------------------------------------------------------------------------------

  private fillFeed(): void {
    const { alerts } = this.areas;
    const wanted = new Set(alerts.map((alert) => alert.id));
    for (const [id, row] of this.rows) {
      if (wanted.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    const wallMs = Date.now();
    let next = this.feed.firstElementChild;
    for (const alert of alerts) {
      const row = this.rows.get(alert.id) ?? this.alertRow(alert);
      this.fillAlert(row, alert, wallMs);
      if (row.element === next) next = next.nextElementSibling;
      else this.feed.insertBefore(row.element, next);
    }
    byId("alerts-none").hidden = alerts.length > 0 || !this.areas.loaded;
    this.older.hidden = this.areas.next === null;
  }

  private alertRow(alert: Alert): Row {
    const told = el("span", { class: "alert-told" });
    const words = el("span", { class: "alert-words" });
    const button = el("button", { type: "button", class: "alert" }, icon(alert.kind === "enter" ? "enter" : "leave"), el("span", { class: "alert-text" }, words, told));
    button.addEventListener("click", () => this.events.alertPicked(alert));
    const element = el("li", { "data-kind-of": alert.kind, "data-alert": String(alert.id) }, button);
    const row = { element, told, words };
    this.rows.set(alert.id, row);
    return row;
  }

  private fillAlert(row: Row, alert: Alert, wallMs: number): void {
    const area = this.areas.get(alert.area);
    row.element.dataset["area"] = area?.colour ?? "slate";
    const sentence = this.sentence(alert);
    if (row.words.textContent !== sentence)
      row.words.replaceChildren(el("b", {}, this.who(alert)), alert.kind === "enter" ? " entered " : " left ", el("b", {}, area?.name ?? "an area"));
    const stay = alert.kind === "leave" ? `, after ${duration(Math.max(0, alert.at_ms - alert.since_ms) / 1_000)}` : "";
    setText(row.told, `${ago(Math.max(0, wallMs - alert.raised_ms) / 1_000)}${stay} · ${clock(alert.at_ms)} UTC`);
    if (row.told.title === "") row.told.title = `${clock(alert.at_ms)} UTC, ${day(alert.at_ms)}`;
  }

  // --- the areas --------------------------------------------------------------------------------------------------------

  private fillAreas(): void {
    const { areas } = this.areas;
    byId("areas-none").hidden = areas.length > 0 || !this.areas.loaded;
    const wanted = new Set(areas.map((area) => String(area.id)));
    for (const row of [...this.list.children] as HTMLElement[]) if (!wanted.has(row.dataset["id"] ?? "")) row.remove();
    let next = this.list.firstElementChild;
    for (const area of areas) {
      const row = this.list.querySelector<HTMLElement>(`[data-id="${area.id}"]`) ?? this.areaRow(area);
      this.fillArea(row, area);
      if (row === next) next = next.nextElementSibling;
      else this.list.insertBefore(row, next);
    }
  }

  private areaRow(area: Area): HTMLElement {
    const fly = el("button", { type: "button", class: "area-name" }, el("i", { "aria-hidden": "true" }), el("b", {}), el("span", {}));
    fly.addEventListener("click", () => this.events.areaPicked(area));
    const edit = el("button", { type: "button", class: "round area-edit" }, icon("edit"));
    edit.addEventListener("click", () => this.events.edited(area));
    return el("li", { class: "area", "data-id": String(area.id) }, fly, edit);
  }

  private fillArea(row: HTMLElement, area: Area): void {
    row.dataset["area"] = area.colour;
    setText(row.querySelector("b") as Element, area.name);
    (row.querySelector(".area-edit") as Element).setAttribute("aria-label", `Edit ${area.name}`);
    const now = performance.now();
    let inside = 0;
    for (const vessel of this.store.all()) if (contains(area.corners, vessel.motion.at(now))) inside += 1;
    setText(row.querySelector("span") as Element, inside === 1 ? "1 vessel" : `${inside} vessels`);
  }
}

// The list of vessels: a listbox that keys can walk. Rows are kept and reordered, never rebuilt, so that focus, scrolling and
// a screen reader's place survive the updates.

import { knots } from "../format";
import { kindOf } from "../kinds";
import { pointingDeg, type Store, type Vessel } from "../store";
import { byId, el, icon, setText } from "./dom";

interface Row {
  element: HTMLLIElement;
  mark: SVGElement;
  name: HTMLElement;
  about: HTMLElement;
  speed: HTMLElement;
}

export class VesselList {
  private readonly list = byId<HTMLUListElement>("list");
  private readonly rows = new Map<string, Row>();
  private active: string | null = null;

  constructor(
    private readonly store: Store,
    private readonly picked: (id: string) => void,
  ) {
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("click", (event) => {
      const row = (event.target as Element).closest<HTMLElement>("[data-id]");
      if (row?.dataset["id"]) this.picked(row.dataset["id"]);
    });
    this.list.addEventListener("focus", () => this.activate(this.active ?? this.store.visible[0]?.id ?? null, false));
  }

  update(): void {
    const vessels = this.store.visible;
    const wanted = new Set(vessels.map((vessel) => vessel.id));
    for (const [id, row] of this.rows) {
      if (wanted.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    let next = this.list.firstElementChild;
    for (const vessel of vessels) {
      const row = this.rows.get(vessel.id) ?? this.create(vessel);
      this.fill(row, vessel);
      if (row.element === next) next = next.nextElementSibling;
      else this.list.insertBefore(row.element, next);
    }
    if (this.active !== null && !wanted.has(this.active)) this.activate(null, false);
  }

  focus(): void {
    this.list.focus();
  }

  /** Marks a vessel as the current one and brings it into view. */
  reveal(id: string | null): void {
    this.activate(id, true);
  }

  private create(vessel: Vessel): Row {
    const mark = icon("ship");
    const name = el("span", { class: "row-name" });
    const about = el("span", { class: "row-about" });
    const speed = el("span", { class: "row-speed" });
    const text = el("span", { class: "row-text" }, name, about);
    const element = el("li", { class: "row", role: "option", id: `row-${vessel.id}`, "data-id": vessel.id }, mark, text, speed);
    const row = { element, mark, name, about, speed };
    this.rows.set(vessel.id, row);
    return row;
  }

  private fill(row: Row, vessel: Vessel): void {
    const kind = kindOf(vessel.info.kind);
    const selected = vessel.id === this.store.selected;
    row.element.dataset["kind"] = kind.id;
    row.element.setAttribute("aria-selected", String(selected));
    row.mark.classList.toggle("still", !vessel.moving);
    row.mark.style.rotate = vessel.moving ? `${Math.round(pointingDeg(vessel) ?? 0)}deg` : "none";
    row.mark.querySelector("use")?.setAttribute("href", vessel.moving ? "#i-ship" : "#i-anchor");
    setText(row.name, vessel.label);
    setText(row.about, kind.label);
    setText(row.speed, vessel.moving ? `${knots(vessel.speedKn)} kn` : "moored");
  }

  private key(event: KeyboardEvent): void {
    const vessels = this.store.visible;
    const at = vessels.findIndex((vessel) => vessel.id === this.active);
    const last = vessels.length - 1;
    const steps: Record<string, number> = {
      ArrowDown: Math.min(last, at + 1),
      ArrowUp: Math.max(0, at - 1),
      PageDown: Math.min(last, at + 8),
      PageUp: Math.max(0, at - 8),
      Home: 0,
      End: last,
    };
    const to = steps[event.key];
    if (to !== undefined) this.activate(vessels[to]?.id ?? null, true);
    else if ((event.key === "Enter" || event.key === " ") && this.active !== null) this.picked(this.active);
    else return;
    event.preventDefault();
  }

  private activate(id: string | null, scroll: boolean): void {
    if (this.active !== null) this.rows.get(this.active)?.element.classList.remove("active");
    this.active = id;
    const row = id === null ? undefined : this.rows.get(id);
    if (row === undefined) {
      this.list.removeAttribute("aria-activedescendant");
      return;
    }
    row.element.classList.add("active");
    this.list.setAttribute("aria-activedescendant", row.element.id);
    if (scroll) row.element.scrollIntoView({ block: "nearest" });
  }
}

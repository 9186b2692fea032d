// Small helpers for the document. Text always goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const HUES = 8;

export const $ = (id) => document.getElementById(id);

// h("li", { class: "room", onclick: f, "aria-current": "true", hidden: false }, child, "text", null)
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name, extra = "") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon ${extra}`.trim());
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function avatar(user, extra = "") {
  const letters = user.display.split(/\s+/).slice(0, 2).map((word) => [...word][0]).join("").toUpperCase();
  return h("span", { class: `avatar ${extra}`.trim(), "data-hue": user.id % HUES, "aria-hidden": "true" }, letters);
}

export function show(element, visible) {
  element.hidden = !visible;
}

// "quay-web1-4711.2" -> "2": what tells the instances of one `flotta run` apart.
export function shortName(instance) {
  return instance.split(".").at(-1);
}

// "instance 1", "instances 1 and 3", "instances 1, 2 and 3"
export function placesOf(instances) {
  const names = instances.map(shortName);
  const last = names.pop();
  return names.length ? `instances ${names.join(", ")} and ${last}` : `instance ${last}`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

export const timeOf = (ms) => clock.format(ms);
export const wholeTimeOf = (ms) => whole.format(ms);
export const dayKey = (ms) => new Date(ms).toDateString();

export function dayName(ms) {
  const days = Math.round((midnight(Date.now()) - midnight(ms)) / 86_400_000);
  if (days > 1) return weekday.format(ms);
  const name = relative.format(-days, "day");
  return name[0].toUpperCase() + name.slice(1);
}

export function ago(ms) {
  const seconds = Math.round((Date.now() - ms) / 1000);
  if (seconds < 60) return "just now";
  for (const [unit, size] of [["day", 86_400], ["hour", 3_600], ["minute", 60]]) {
    if (seconds >= size) return relative.format(-Math.floor(seconds / size), unit);
  }
  return "";
}

function midnight(ms) {
  return new Date(ms).setHours(0, 0, 0, 0);
}

// Make `parent` hold exactly `nodes`, in this order, moving as little as it can: what has the focus keeps it.
export function arrange(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  let at = parent.firstChild;
  for (const node of nodes) {
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
}

// One call of `draw` per frame, however often it is asked for.
export function eachFrame(draw) {
  let planned = false;
  return () => {
    if (planned) return;
    planned = true;
    const run = () => {
      planned = false;
      draw();
    };
    // A hidden page has no frames, but its counters should still be right.
    if (document.visibilityState === "visible") requestAnimationFrame(run);
    else setTimeout(run, 50);
  };
}

let noticeTimer = 0;

export function notice(text) {
  const box = $("notice");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (box.hidden = true), 5_000);
}

// The dialog for an area's name and colour: of a new one, or of one that is there.

import { ApiError } from "../api";
import type { Area } from "../areas";
import { AREA_COLOURS } from "../colours";
import { byId, el } from "./dom";

export interface AreaFormEvents {
  /** Raises what the service refuses. */
  save(name: string, colour: string): Promise<unknown>;
  remove: (() => Promise<unknown>) | null;
  colourTried(colour: string): void;
  left(): void;
}

/** `area` null: a new one. */
export function askArea(area: Area | null, colour: string, events: AreaFormEvents): void {
  const dialog = byId<HTMLDialogElement>("dialog");
  const name = el("input", { type: "text", name: "name", required: "", maxlength: "60", autocomplete: "off", placeholder: "Pilot station", ...(area === null ? {} : { value: area.name }) });
  const error = el("p", { class: "form-error", role: "alert" });
  const submit = el("button", { type: "submit", class: "primary" }, area === null ? "Save the area" : "Save");
  const leave = el("button", { type: "button", class: "link" }, area === null ? "Back to the drawing" : "Cancel");
  const ways = el("p", { class: "form-ways" }, leave);
  const title = el("h2", { id: "dialog-title" }, area === null ? "Name the area" : "Edit the area");
  const form = el("form", { method: "dialog" }, title, el("label", { class: "field" }, el("span", {}, "Name"), name), swatches(area?.colour ?? colour), error, submit, ways);
  let done = false;

  const attempt = async (change: () => Promise<unknown>): Promise<void> => {
    submit.disabled = true;
    error.textContent = "";
    try {
      await change();
      done = true;
      dialog.close();
    } catch (cause) {
      error.textContent = cause instanceof ApiError ? cause.message : "The service cannot be reached. Please try again.";
    } finally {
      submit.disabled = false;
    }
  };
  const { remove } = events;
  if (remove !== null) ways.append(removing(() => void attempt(remove)));
  form.addEventListener("change", () => events.colourTried(chosen(form)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void attempt(() => events.save(name.value, chosen(form)));
  });
  leave.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => done || events.left(), { once: true });
  dialog.replaceChildren(form);
  dialog.showModal();
  name.focus();
  name.select();
}

function swatches(colour: string): HTMLElement {
  const choices = AREA_COLOURS.map((name) => {
    const radio = el("input", { type: "radio", name: "colour", value: name, "aria-label": name, ...(name === colour ? { checked: "" } : {}) });
    return el("label", { class: "swatch", "data-area": name, title: name }, radio, el("i", { "aria-hidden": "true" }));
  });
  return el("fieldset", { class: "field swatches" }, el("legend", {}, "Colour"), el("div", {}, ...choices));
}

/** Deleting takes the alerts along, so it is asked twice, on the same button. */
function removing(confirmed: () => void): HTMLElement {
  const button = el("button", { type: "button", class: "link danger" }, "Delete the area");
  button.addEventListener("click", () => {
    if (button.dataset["sure"] === "1") confirmed();
    else {
      button.dataset["sure"] = "1";
      button.textContent = "Delete it and its alerts";
    }
  });
  return button;
}

function chosen(form: HTMLFormElement): string {
  return String(new FormData(form).get("colour"));
}
